"""`inspect PATH`."""

from __future__ import annotations

import argparse
import os
from typing import Any

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser
from scopeferry.config import find, fold
from scopeferry.logs import printable
from scopeferry.reports.following import array_line


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "inspect",
        "inspect PATH [options]",
        "What is this, is it finished, and how do we know? The same verdict as that of live; nothing is copied.\n"
        "Exit code 0: finished; 6: running, aborted or unknown; 2: not there.",
        "scopeferry inspect /acq/embryo.zarr",
    )
    made.add_argument("PATH", help="a folder, or a Zarr store")
    made.settings("finish", "settle", "expect", "writer", "writer-pid", "include", "exclude", section="live")
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Look."""
    given = [*find("live", os.environ), *args.given]
    settings = fold("live", given)
    from scopeferry.cli.face import watch
    from scopeferry.jobs.inspect import InspectJob
    from scopeferry.jobs.targets_file import target_of

    aim = target_of(args.PATH, f"{args.PATH}.copy", given)
    job = InspectJob(args.PATH, aim, settings.get("select"))
    return watch(job, console, args, interval_s=settings.get("interval"), reads_only=True, before_end=tell)


def tell(console: Console, result: Any) -> None:
    """The verdict, why, and the arrays, as lines for people."""
    details = result.details
    if "evidence" not in details:
        console.data(f"{printable(result.source)}  not there yet")
        return
    state = details["verdict"] if result.state == "planned" else result.state
    kind = "Zarr" if details["zarr"] else "folder"
    why = "; ".join(f"{one['kind']}: {one['detail']}" if one["detail"] else one["kind"] for one in details["evidence"])
    console.data(f"{printable(result.source)}  {kind}  {state}" + (f" ({printable(why)})" if why else ""))
    for array in details["arrays"]:
        console.data(f"  {array_line(array)}")
    if details["awaited"]:
        console.data(f"  to end: {printable('; '.join(details['awaited']))}")
