"""`status [RUN]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser

SHOWN = 20
INDENT = "    "


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "status",
        "status [RUN] [options]",
        "What runs, what ran, and what died without saying so (killed, power lost), with the command that goes on.",
        "scopeferry status 20261120T1015",
    )
    made.add_argument("RUN", nargs="?", help="one run: its id, or how it begins")
    made.add_argument("--all", action="store_true", help=f"all runs, not only the last {SHOWN} that ended")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout")
    made.verbosity()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Show it."""
    from scopeferry.jobs.status import status

    result = status(args.RUN)
    if args.json:
        from scopeferry.cli.face import dumps

        console.data(dumps(result.as_dict()))
        return 0
    shown = result.details["runs"]
    for line in _one(shown[0]) if args.RUN is not None else _table(shown, everything=args.all):
        console.data(line)
    return 0


def _table(runs: list[dict[str, Any]], *, everything: bool) -> Iterator[str]:
    """A line a run, newest first; those that are not over always."""
    if not runs:
        yield "no runs yet"
    ended = 0
    for entry in runs:
        ended += entry["status"] == "ended"
        if everything or entry["status"] != "ended" or ended <= SHOWN:
            yield from _lines(entry)
    if not everything and ended > SHOWN:
        yield f"and {ended - SHOWN:,} more that ended: --all"


def _lines(entry: Mapping[str, Any]) -> Iterator[str]:
    from scopeferry.logs import printable

    paths = " -> ".join(printable(str(entry[key])) for key in ("source", "destination") if entry.get(key))
    yield f"{entry['run']}  {_state(entry):<16}  {entry.get('job', '?'):<8}  {_progress(entry)}{paths}"
    if entry["resume"]:
        yield f"{INDENT}to go on: {entry['resume']}"
    elif entry["status"] == "dead" and entry["followed_by"]:
        yield f"{INDENT}taken up by {entry['followed_by']}"


def _state(entry: Mapping[str, Any]) -> str:
    return f"exit {entry.get('exit_code', '?')}" if entry["status"] == "ended" else str(entry["status"])


def _progress(entry: Mapping[str, Any]) -> str:
    from scopeferry.reports.units import count, size

    now = entry["progress"]
    if entry["status"] != "ended" and "acquired_bytes" in now:
        return f"acquired {size(now['acquired_bytes'])}  copied {size(now['copied_bytes'])}  "
    if entry["status"] != "ended" and now.get("total_bytes") is not None:
        return (
            f"copied {now.get('copied_percent', 0)} %  verified {now.get('verified_percent', 0)} %  "
            f"{now.get('items', 0):,} of {count(now.get('total_items', 0))}  {size(now.get('copied_bytes', 0))}  "
        )
    if entry["status"] == "ended":
        return f"{count(entry.get('items', 0), 'item')}  {size(entry.get('bytes', 0))}  "
    return ""


def _one(entry: Mapping[str, Any]) -> Iterator[str]:
    from scopeferry.logs import printable, quoted

    yield from _lines(entry)
    for key in ("started", "ended"):
        if isinstance(entry.get(key), int | float):
            yield f"{INDENT}{key}: {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(entry[key]))}"
    yield f"{INDENT}by: pid {entry.get('pid', '?')} on {printable(str(entry.get('host', '?')))}"
    yield f"{INDENT}command: {' '.join(quoted(str(word)) for word in entry.get('command') or ())}"
    yield from _of_live(entry["progress"])
    for key in ("journal", "records"):
        if entry.get(key):
            yield f"{INDENT}{key}: {printable(str(entry[key]))}"


def _of_live(progress: Mapping[str, Any]) -> Iterator[str]:
    """Why it ended or what it waits for, and what is there of each array."""
    from scopeferry.logs import printable
    from scopeferry.reports.following import array_line

    for one in progress.get("evidence", ()):
        yield f"{INDENT}{one['kind']}: {printable(one['detail'])}"
    for text in progress.get("awaited", ()):
        yield f"{INDENT}to end: {printable(text)}"
    for array in progress.get("arrays", ()):
        yield f"{INDENT}{array_line(array)}"
