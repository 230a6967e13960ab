"""The receipt of a generation: text for a notebook (at most 60 lines) and the same as JSON, beside the manifest.

It says what was done, what was read back and how, which digest the whole tree has, what was lost or failed, and under
which guarantee. Its facts come from the envelope of the result and the first line of the record; it asks nobody.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scopeferry.errors import CODES
from scopeferry.logs import printable
from scopeferry.reports.evidence import lost, problem_line, proof
from scopeferry.reports.units import count, duration, shorten, size

NAME = "receipt"
WIDTH = 110
MAX_LINES = 60
MAX_PROBLEMS = 8
MAX_GENERATIONS = 5

GUARANTEE = """\
For every file called verified, the source was read once from first to last byte, and its inode, size, modification
time and change time were the same before and after. The bytes were written under a temporary name, flushed to the
storage, the cached copy was asked to be dropped, the file was read back in full, and the digest was equal. Only then
did it get its name, and only after that was it recorded. (Adopted: it was there before; both sides were read in full
and found equal.) What changed, vanished, could not be read or could not be proved is named, and the exit code is not 0.
This does not say that a file server or mount answered from its disks, that the storage will return tomorrow what it
returned today (run scopeferry verify again), or that nobody forged data and manifest together: keep the manifest's
SHA-256 elsewhere."""


def facts(
    envelope: Mapping[str, Any], header: Mapping[str, Any], generations: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Everything a receipt says, as plain values. `generations` holds what the last lines of all records say."""
    return {
        "format": "scopeferry-receipt",
        "version": 1,
        **envelope,
        "command_line": header.get("command") or envelope["command"],
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **{key: header.get(key) for key in ("tool", "host", "user", "started", "verify", "digests", "keep")},
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "tree_digests": _sides(envelope),
        "generations": [dict(generation) for generation in generations],
        "guarantee": GUARANTEE.replace("\n", " "),
    }


def _finished(receipt: Mapping[str, Any]) -> str:
    """Why the source was taken for finished."""
    evidence = receipt.get("evidence")
    if evidence is None:
        return "declared by the command"
    return "; ".join(printable(f"{one['kind']}: {one['detail']}") for one in evidence) or "no: nothing said so"


def _sides(envelope: Mapping[str, Any]) -> dict[str, str]:
    """The digest of the tree as it was read at the source, and as it was found at the destination."""
    digest = envelope.get("tree_digest", "")
    whole = not envelope.get("failed") and envelope.get("state") in {"complete", "finished"}
    moved = sum(envelope.get(kind, 0) for kind in ("copied", "replaced", "repaired"))
    read = sum(number for kind, number in (envelope.get("read_back") or {}).items() if kind != "no")
    if not read and moved:
        proved = "not read back"
    elif envelope.get("unproved"):
        proved = f"a sample of {count(read)} was read back"
    elif envelope.get("skipped"):
        proved = f"{count(read)} read back now, {envelope['skipped']:,} there already, see the earlier records"
    else:
        proved = f"each of {count(read)} was read back now"
    return {
        "source": digest if whole else "",
        "source_note": "of what was read" if whole else "not known: not everything could be read",
        "destination": digest,
        "destination_note": proved,
    }


def text(receipt: Mapping[str, Any]) -> str:
    """The receipt for people; at most 60 lines, whatever happened."""
    sides = receipt["tree_digests"]
    rows: list[tuple[str, str]] = [
        ("state", f"{receipt['state']}, exit code {receipt['exit_code']}"),
        ("run", f"{receipt['run']}   {receipt.get('tool') or 'scopeferry'}   {receipt['system']}"),
        ("command", printable(receipt["command_line"])),
        ("by", f"{receipt.get('user') or '?'} on {receipt.get('host') or '?'}"),
        ("source", printable(receipt["source"])),
        ("destination", printable(receipt["destination"])),
        ("started", f"{receipt.get('started') or '?'}   ended {receipt['ended']}   {duration(receipt['elapsed_s'])}"),
        ("finished", _finished(receipt)),
        ("", ""),
        ("items", _counts(receipt)),
        ("bytes", f"{receipt['bytes']:,} ({size(receipt['bytes'])}) sent"),
        ("read back", f"{proof(receipt) or 'no'}   --verify {receipt.get('verify') or 'full'}"),
        ("lost", lost(receipt)),
        ("waived", ", ".join(map(printable, receipt.get("waived") or ())) or "nothing"),
        ("retries", count(receipt.get("retries") or 0, "further try")),
        ("digests", ", ".join(receipt.get("digests") or ()) + "   (the first one proves)"),
        ("tree", f"source       {sides['source'] or '-'}   {sides['source_note']}"),
        ("", f"destination  {sides['destination'] or '-'}   {sides['destination_note']}"),
        *_manifests(receipt),
        ("record", printable(os.path.basename(receipt.get("record", "")))),
    ]
    lines = ["scopeferry: receipt", ""]
    lines += [f"{name:<12} {shorten(value, 4 * WIDTH)}".rstrip() for name, value in rows]
    lines += _generations(receipt["generations"]) + _problems(receipt)
    end = ["", *GUARANTEE.splitlines()]
    return "\n".join(lines[: MAX_LINES - len(end)] + end) + "\n"


def _counts(receipt: Mapping[str, Any]) -> str:
    kinds = ("copied", "adopted", "checked", "replaced", "repaired", "skipped", "failed", "extras")
    found = [f"{receipt[kind]:,} {kind}" for kind in kinds if receipt.get(kind)]
    return f"{receipt['items']:,}: " + (", ".join(found) or "nothing to do") + f"; {receipt['verified']:,} verified"


def _manifests(receipt: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The SHA-256 of each manifest: the line to keep elsewhere."""
    hashes = receipt.get("manifests") or {}
    return [("manifest" if not i else "", f"manifest.{name}   sha256 {hashes[name]}") for i, name in enumerate(hashes)]


def _generations(generations: Sequence[Mapping[str, Any]]) -> list[str]:
    earlier = list(generations)[:-1]
    if not earlier:
        return []
    lines = ["", f"earlier generations: {len(earlier)}"]
    for generation in earlier[-MAX_GENERATIONS:]:
        counts = generation.get("counts") or {}
        done = sum(counts.get(kind, 0) for kind in ("copied", "adopted", "replaced", "repaired"))
        lines.append(
            f"  {generation.get('name', '?')}  {generation.get('state', 'cut off')}  {done:,} sent or adopted, "
            f"{counts.get('verified', 0):,} read back"
        )
    return lines


def _problems(receipt: Mapping[str, Any]) -> list[str]:
    problems = sorted(receipt["problems"], key=lambda problem: CODES[problem["code"]][0] == 0)
    if not problems:
        return []
    lines = ["", f"problems and notes: {receipt.get('problem_count', len(problems)):,}"]
    lines += [f"  {shorten(printable(problem_line(problem)), 2 * WIDTH)}" for problem in problems[:MAX_PROBLEMS]]
    more = receipt.get("problem_count", len(problems)) - MAX_PROBLEMS
    return [*lines, f"  and {more:,} more, all in the record"] if more > 0 else lines


def as_json(receipt: Mapping[str, Any]) -> str:
    """The receipt for programs."""
    return json.dumps(receipt, indent=1) + "\n"
