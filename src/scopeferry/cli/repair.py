"""`repair SRC DST`."""

from __future__ import annotations

import argparse

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser, configured


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "repair",
        "repair SRC DST [options]",
        "Read the copy again, and send each wrong or missing file whose source still is what was recorded.\n"
        "What was found in its place is kept in the record folder.",
        "scopeferry repair /acq/run7 /mnt/archive/run7",
    )
    made.add_argument("SRC", help="what it was copied from")
    made.add_argument("DST", help="the copy")
    made.settings("workers", "journal", "records")
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Repair."""
    settings = configured(args)
    from scopeferry.cli.face import watch
    from scopeferry.jobs.repair import RepairJob
    from scopeferry.jobs.verify import VerifySettings

    wanted = VerifySettings(
        records=settings.get("records"), journal=settings.get("journal"), workers=settings.get("workers")
    )
    job = RepairJob(args.SRC, args.DST, wanted)
    return watch(job, console, args, interval_s=settings.get("interval"), reads_only=True)
