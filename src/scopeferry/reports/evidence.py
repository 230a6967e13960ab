"""The last lines of a command: the exit code and why, counts, what was read back and how, and the next command.

Everything comes from the envelope (``Result.as_dict()``), so a report made later says the same. The word *verified* is
used only for what was read back; where it was read from is always said.

>>> last_line({"exit_code": 2, "problems": [{"code": "SF-101", "path": "/nope", "message": "source is not there: /nope",
...     "hint": "check the path"}]})
'exit 2: source is not there: /nope (SF-101)   next: check the path'
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from scopeferry.errors import CODES
from scopeferry.logs import printable, quoted
from scopeferry.reports.units import count, shorten, size

SHOWN = 20
GAP = "   "
MAX_PATH = 100

WHERE = {"storage": "storage", "server": "the server", "mount": "the mount", "memory": "memory"}
COPYING = {"transfer", "repair", "live"}
#: How a job that only looks ends well, by its state.
AGREED = {
    "verified": "no differences",
    "sampled": "no differences in the sample",
    "compared": "no differences in kind, size and time",
}
#: Exit codes that come from single items, where not all of 3, 4, 5 and 6 do.
BY_ITEM: dict[str, set[int]] = {"clean": set(), "inspect": set(), "live": {3, 5}}
MOVED = ("copied", "replaced", "repaired")
SETTLED = ("adopted", "checked")
MINOR = {"SF-404", "SF-405"}  # differences that say nothing about content


def last_line(envelope: Mapping[str, Any]) -> str:
    """One line: code and why, counts, losses, the next step, and where record and receipt lie."""
    code = envelope["exit_code"]
    deciding = _deciding(envelope)
    parts = [f"exit {code}: {_why(envelope, deciding) if code else _success(envelope)}"]
    if envelope.get("items") or code == 0:
        parts.append(envelope.get("verdict") or _counts(envelope))
    if ended := _ended(envelope):
        parts.append(ended)
    if envelope.get("state") not in {None, "", "planned"} and envelope.get("command") in COPYING:
        parts.append(f"lost: {lost(envelope)}")
    if code and deciding is not None:
        parts.append(f"next: {next_step(envelope, deciding)}")
    papers = _papers(envelope)
    return GAP.join(part for part in [*parts, papers] if part)


OVER = ("finished", "aborted", "unknown")  # states of an acquisition that has ended


def _ended(envelope: Mapping[str, Any]) -> str:
    """Why `live` takes it for over: ``finished on marker: complete``, or how many of its targets ended how."""
    targets: list[Any] = envelope.get("targets") or []
    if envelope.get("state") == "planned":
        return ""
    if len(targets) == 1 and targets[0].get("evidence") and targets[0]["state"] in OVER:
        strongest = targets[0]["evidence"][0]
        detail = f": {printable(strongest['detail'])}" if strongest.get("detail") else ""
        return f"{targets[0]['state']} on {strongest['kind']}{detail}"
    states = [target["state"] or "failed" for target in targets]
    return ", ".join(f"{states.count(state):,} {state}" for state in dict.fromkeys(states)) if len(states) > 1 else ""


def problem_lines(envelope: Mapping[str, Any]) -> Iterator[str]:
    """One line a problem, notes last; the first 20, the rest counted. What the last line says in full is left out."""
    problems = sorted(envelope.get("problems", ()), key=lambda problem: CODES[problem["code"]][0] == 0)
    if len(problems) == 1 and not _counted(envelope) and CODES[problems[0]["code"]][0] != 0:
        return
    for problem in problems[:SHOWN]:
        yield problem_line({**problem, "hint": next_step(envelope, problem)})
    rest = envelope.get("problem_count", len(problems)) - min(len(problems), SHOWN)
    if rest > 0:
        yield f"and {rest:,} more: --json and the record list them"


def problem_line(problem: Mapping[str, str]) -> str:
    """``SF-204 read error at the source: raw/a.tif   next: check the disk``."""
    path = printable(problem["path"])
    named = "" if not path or path in problem["message"] else f" {path}:"
    hint = problem.get("hint", "")
    return f"{problem['code']}{named} {problem['message']}" + (f"{GAP}next: {hint}" if hint else "")


def lost(envelope: Mapping[str, Any]) -> str:
    """What could not be kept, by kind: ``12 xattrs, 3 times``, or ``nothing``."""
    found = envelope.get("lost") or {}
    return ", ".join(f"{number:,} {kind}" for kind, number in sorted(found.items())) or "nothing"


def next_step(envelope: Mapping[str, Any], problem: Mapping[str, str]) -> str:
    """The hint of the problem that decides, with the paths of this run where it names SRC and DST."""
    names = {"SRC": envelope.get("source") or "", "DST": envelope.get("destination") or ""}
    if ", " in names["DST"]:  # several copies
        names["DST"] = ""
    hint = problem.get("hint") or CODES[problem["code"]][2]
    return re.sub(r"\b(SRC|DST)\b", lambda match: quoted(names[match[0]]) if names[match[0]] else match[0], hint)


def proof(envelope: Mapping[str, Any]) -> str:
    """How what was moved was read back: ``read back from storage (xxh128)``."""
    found = {kind: number for kind, number in (envelope.get("read_back") or {}).items() if kind != "no" and number}
    if not found:
        return ""
    digests = envelope.get("digests") or ()
    by = f" ({digests[0]})" if digests else ""
    if len(found) == 1:
        return f"read back from {WHERE[next(iter(found))]}{by}"
    return "read back: " + ", ".join(f"{number:,} from {WHERE[kind]}" for kind, number in found.items()) + by


# -- the parts ---------------------------------------------------------------------------------------------------------


def _deciding(envelope: Mapping[str, Any]) -> Mapping[str, str] | None:
    """The problem that gives the exit code: the first with the lowest code, so content comes before its times."""
    code = envelope["exit_code"]
    found = (problem for problem in envelope.get("problems", ()) if CODES[problem["code"]][0] == code)
    return min(found, key=lambda problem: (problem["code"] in MINOR, problem["code"]), default=None)


def _counted(envelope: Mapping[str, Any]) -> bool:
    """Does the exit code come from items that are counted, each with its own line?"""
    by_item = envelope["exit_code"] in BY_ITEM.get(envelope.get("command", ""), {3, 4, 5, 6})
    return by_item and bool(envelope.get("items"))


def _why(envelope: Mapping[str, Any], deciding: Mapping[str, str] | None) -> str:
    code = envelope["exit_code"]
    if deciding is None:
        return "failed"
    meaning = f"({deciding['code']} {CODES[deciding['code']][1]})"
    if not _counted(envelope):
        return f"{_named(deciding)} ({deciding['code']})"
    number = len({problem["path"] for problem in envelope["problems"] if CODES[problem["code"]][0] == code})
    number = max(number, envelope.get("failed", 0) if code in {3, 4} else 0)
    items = envelope["items"]
    of = f"{number:,} of {items:,} items" if number <= items else count(number, "entry")  # folders are no items
    verb = {3: f"{of} failed", 4: f"{of} differ", 5: f"refused: {of}", 6: f"the source is still being written: {of}"}[
        code
    ]
    first = shorten(printable(deciding["path"]), MAX_PATH)
    return f"{verb}, first {first} {meaning}" if first else f"{verb}: {deciding['message']} ({deciding['code']})"


def _named(problem: Mapping[str, str]) -> str:
    path = printable(problem["path"])
    return problem["message"] if not path or path in problem["message"] else f"{problem['message']}: {path}"


def _success(envelope: Mapping[str, Any]) -> str:
    if envelope.get("command") == "inspect":
        return str(envelope["state"])
    if envelope.get("state") in AGREED:
        return AGREED[envelope["state"]]
    if envelope.get("state") == "planned":
        return "this is the plan; nothing was touched"
    if _idle(envelope):
        return "nothing to do"
    if envelope.get("command") == "repair" and not envelope.get("found_wrong"):
        return "nothing to do"
    if _read_back(envelope) and not envelope.get("unproved") and envelope.get("command") in COPYING:
        return "done and verified"
    return "done"


def _counts(envelope: Mapping[str, Any]) -> str:
    if envelope.get("state") == "planned":
        return _planned(envelope)
    if _idle(envelope):
        return _there(envelope)
    moved = sum(envelope.get(kind, 0) for kind in MOVED)
    parts = [_moved(envelope, moved)] if moved else []
    parts += [f"{envelope[kind]:,} {kind}" for kind in SETTLED if envelope.get(kind)]
    if not moved and (found := proof(envelope)):
        parts[-1:] = [f"{part} and {found}" for part in parts[-1:]]
    if envelope.get("skipped"):
        parts.append(f"{envelope['skipped']:,} there already")
    if envelope.get("extras"):
        parts.append(f"{envelope['extras']:,} only at the destination")
    return ", ".join(parts)


def _there(envelope: Mapping[str, Any]) -> str:
    if not envelope.get("skipped"):
        return "0 files"
    total = envelope.get("bytes_total")
    return count(envelope["skipped"]) + (f", {size(total)}" if total is not None else "") + " as they were recorded"


def _moved(envelope: Mapping[str, Any], moved: int) -> str:
    """``20,431 files, 1.31 TB copied and read back from storage (xxh128)``."""
    links, unproved = envelope.get("links", 0), envelope.get("unproved", 0)
    made = f", {count(links, 'link')} made" if links else ""
    if moved == links:
        return made.removeprefix(", ")
    text = f"{count(moved - links)}, {size(envelope['bytes'])} copied"
    proved, how = moved - links - unproved, proof(envelope)
    if not unproved:
        return f"{text} and {how}{made}"
    if not proved:
        return f"{text}, not read back{made}"
    return f"{text}, a sample of {proved:,} ({100 * proved / (moved - links):.1f} %) {how}{made}"


def _planned(envelope: Mapping[str, Any]) -> str:
    plan = envelope.get("plan", {})
    would = f"would copy or compare {count(plan.get('open', 0))}, {size(plan.get('bytes', 0))}"
    free = plan.get("free_bytes")
    return would + (f"; {size(free)} free" if free is not None else "")


def _read_back(envelope: Mapping[str, Any]) -> bool:
    return any(number for kind, number in (envelope.get("read_back") or {}).items() if kind != "no")


def _idle(envelope: Mapping[str, Any]) -> bool:
    done = sum(envelope.get(kind, 0) for kind in (*MOVED, *SETTLED, "failed"))
    return not done and envelope.get("command") in {"transfer", "live"}


def _papers(envelope: Mapping[str, Any]) -> str:
    """Where record and receipt lie, from the destination's parent."""
    record, receipt = envelope.get("record", ""), envelope.get("receipt", "")
    if not record:
        return f"receipt {shown_path(envelope, receipt)}" if receipt else ""
    text = f"record {shown_path(envelope, record)}"
    if not receipt:
        return text
    same = os.path.dirname(record) == os.path.dirname(receipt)
    return f"{text}, {os.path.basename(receipt) if same else shown_path(envelope, receipt)}"


def shown_path(envelope: Mapping[str, Any], path: str) -> str:
    """A path as it is best shown: from the parent of the destination if it lies there."""
    parent = os.path.dirname(envelope.get("destination") or "").rstrip(os.sep) + os.sep
    inside = path.startswith(parent) and parent != os.sep
    return printable(path[len(parent) :] if inside else path)
