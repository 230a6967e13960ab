"""`transfer SRC DST`."""

from __future__ import annotations

import argparse

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser, configured


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "transfer",
        "transfer SRC DST [options]",
        "Copy a finished folder (or file), read every byte back from storage, and keep a record of it.\n"
        "The same command again does exactly what is missing.",
        "scopeferry transfer /acq/run7 /mnt/archive/run7 --digest xxh128 --digest sha256 --limit 50MB",
    )
    made.add_argument("SRC", help="its contents appear directly in DST")
    made.add_argument("DST", help="made if its parent exists")
    made.settings("verify", "digest", "workers", "executor", "limit", "on-conflict", "include", "exclude", "keep")
    made.settings("no-keep", "strict", "names", "parents", "patience", "finish", "wait", "journal", "records")
    made.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Copy."""
    settings = configured(args)
    from scopeferry.cli.face import watch
    from scopeferry.jobs.transfer import TransferJob

    job = TransferJob(args.SRC, args.DST, settings.transfer(dry_run=args.dry_run))
    job.may_fork = True
    return watch(job, console, args, interval_s=settings.get("interval"))
