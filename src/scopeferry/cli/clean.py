"""`clean SRC --copy DST`."""

from __future__ import annotations

import argparse

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser, configured
from scopeferry.jobs.result import Result
from scopeferry.logs import printable


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "clean",
        "clean SRC --copy DST [--copy DST] [options]",
        "Free the original, after every copy that is named has been read again from storage and found right.\n"
        "Without --yes it says what would be done, and touches nothing.",
        "scopeferry clean /acq/run7 --copy /mnt/archive/run7 --copy /mnt/tape/run7 --older-than 30d",
    )
    made.add_argument("SRC", help="what was copied, and is to be freed")
    made.add_argument("--copy", metavar="DST", action="append", default=[], help="a copy of it; may be repeated")
    made.add_argument("--yes", action="store_true", help="do it, if every condition holds")
    made.add_argument("--copies", metavar="N", help="how many copies must hold a file; default: all that are named")
    made.add_argument("--older-than", metavar="TIME", help="only if nothing in it is younger, e.g. 30d")
    made.add_argument("--other-disk", action="store_true", help="refuse a copy on the file system of the source")
    made.add_argument("--finish", metavar="now", help="declare now that the source is finished")
    made.add_argument("--trash", metavar="DIR", help="move the files there, on the same file system")
    made.settings("workers", "journal", "records")
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Show the plan, and with --yes carry it out."""
    settings = configured(args)
    from scopeferry.cli.face import watch
    from scopeferry.config import duration_s, flag, one_of, whole
    from scopeferry.jobs.clean import CleanJob, CleanSettings

    wanted = CleanSettings(
        yes=args.yes,
        copies_needed=flag("--copies", args.copies, whole),
        older_than_s=flag("--older-than", args.older_than, duration_s, 0.0),
        other_disk=args.other_disk,
        finish_now=flag("--finish", args.finish, one_of(("now",))) == "now",
        trash=args.trash,
        records=settings.get("records"),
        journal=settings.get("journal"),
        workers=settings.get("workers"),
    )
    job = CleanJob(args.SRC, args.copy, wanted)
    return watch(job, console, args, interval_s=settings.get("interval"), reads_only=True, before_end=_say_conditions)


def _say_conditions(console: Console, result: Result) -> None:
    """The plan: each condition and its outcome."""
    for condition in result.details.get("conditions", ()):
        copy = f"{printable(condition['copy'])}: " if condition["copy"] not in condition["message"] else ""
        verdict = "ok " if condition["ok"] else "NO "
        console.data(f"{verdict} {condition['condition']:<16} {copy}{printable(condition['message'])}")
