"""`verify DST [SRC]`."""

from __future__ import annotations

import argparse

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser, configured
from scopeferry.config import flag, percentage, words


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "verify",
        "verify DST [SRC] [options]",
        "Read every file of a copy again from storage and compare it with its manifest; with SRC, read both sides and\n"
        "say which one changed. Nothing in the copy is touched.",
        "scopeferry verify /mnt/archive/run7 --sample 5%",
    )
    made.add_argument("DST", help="the copy")
    made.add_argument("SRC", nargs="?", help="what it was copied from")
    made.add_argument("--manifest", metavar="FILE", help="a manifest that others wrote: sums, BagIt, rclone")
    made.add_argument(
        "--digest", metavar="ALGO", action="append", default=[], help="compute this one too, and record it"
    )
    made.add_argument("--sample", metavar="P%", help="only so many of the files, those proved longest ago")
    made.add_argument("--quick", action="store_true", help="compare kind, size and times only; nothing is read")
    made.add_argument("--strict", action="store_true", help="extra files are differences")
    made.add_argument("--one-way", action="store_true", help="with SRC: files only in the copy are no differences")
    made.add_argument("--adopt", action="store_true", help="with SRC: make a record of a copy that has none")
    made.settings("workers", "journal", "records")
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Verify."""
    settings = configured(args)
    from scopeferry.cli.face import watch
    from scopeferry.errors import UsageError
    from scopeferry.jobs.adopt import AdoptJob
    from scopeferry.jobs.verify import VerifyJob, VerifySettings

    wanted = VerifySettings(
        manifest=args.manifest,
        digest=tuple(name for value in args.digest for name in words(value)),
        sample=flag("--sample", args.sample, percentage),
        quick=args.quick,
        strict=args.strict,
        one_way=args.one_way,
        adopt=args.adopt,
        records=settings.get("records"),
        journal=settings.get("journal"),
        workers=settings.get("workers"),
    )
    if args.adopt and args.SRC is None:
        raise UsageError("--adopt needs the source to compare with", hint="scopeferry verify DST SRC --adopt")
    job = AdoptJob(args.SRC, args.DST, wanted) if args.adopt else VerifyJob(args.DST, args.SRC, wanted)
    return watch(job, console, args, interval_s=settings.get("interval"), reads_only=True)
