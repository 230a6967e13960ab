"""`live SRC DST`, `live --targets FILE`, `live FILE`."""

from __future__ import annotations

import argparse
import os

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser
from scopeferry.config import MAX_WORKERS, find, fold
from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import UsageError
from scopeferry.logs import printable

USAGE = "live SRC DST | --targets FILE [options]"


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "live",
        USAGE,
        "Copy a dataset while it is written, gently; end on evidence that it is over, and prove the copy equal.\n"
        "Start it before, during or after the acquisition. The same command again does exactly what is missing.",
        "scopeferry live /acq/embryo.zarr /mnt/archive/embryo.zarr --limit 80MB",
    )
    made.add_argument("SRC", nargs="?", help="a Zarr store or any folder; or alone: a file that lists targets")
    made.add_argument("DST", nargs="?", help="the copy itself, not its parent; made with its parents")
    made.add_argument("--targets", metavar="FILE", help="several at once: a targets.yaml, as softcopy has it")
    made.settings("workers", "nprocs", "sleep-time", "wait-for-source", "finish", "settle", "expect", section="live")
    made.settings("writer", "writer-pid", "watch", "scan-interval", "limit", "gentle", "verify", section="live")
    made.settings("on-conflict", "stale", "patience", "include", "exclude", "journal", "records", section="live")
    made.add_argument(
        "--dry-run", action="store_true", help="say what is there and what would be awaited; write nothing"
    )
    made.faces()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Follow them."""
    targets, settings, interval_s = understood(args)
    from scopeferry.cli.live_face import follow
    from scopeferry.jobs.live import Live

    return follow(Live(targets, settings=settings), console, args, interval_s=interval_s)


def understood(args: argparse.Namespace) -> tuple[list[Target], LiveSettings, float]:
    """(targets, what holds for all of them, seconds between two lines). Nothing is touched."""
    configured = list(find("live", os.environ))
    held = fold("live", [*configured, *args.given])
    listed, source, destination = named(args)
    if listed is not None:
        from scopeferry.jobs.targets_file import read_targets

        targets = read_targets(listed, configured=configured, flags=args.given, only=args.targets is None)
    else:
        from scopeferry.jobs.targets_file import target_of

        targets = [target_of(source, destination, [*configured, *args.given])]
    nprocs = held.get("nprocs")
    settings = LiveSettings(
        workers=held.get("workers") if nprocs is None else min(MAX_WORKERS, nprocs * len(targets)),
        limit=held.get("limit"),
        gentle=held.get("gentle"),
        select=held.get("select"),
        dry_run=args.dry_run,
        journal=held.get("journal"),
        records=held.get("records"),
    )
    return targets, settings, held.get("interval")


def named(args: argparse.Namespace) -> tuple[str | None, str, str]:
    """(targets file, source, destination): the file, or both of the others. Raises UsageError for other mixtures."""
    help_ = f"scopeferry {USAGE}"
    if args.targets is not None:
        if args.SRC is not None:
            message = (
                f"--targets FILE stands alone: it names sources and destinations, so what is {printable(args.SRC)}?"
            )
            raise UsageError(message, hint=help_)
        return args.targets, "", ""
    if args.SRC is None:
        raise UsageError("scopeferry live needs SRC and DST, or a targets file", hint=help_)
    if args.DST is not None:
        return None, args.SRC, args.DST
    if os.path.isdir(args.SRC):
        raise UsageError(f"no destination for {printable(args.SRC)}", path=args.SRC, hint=help_)
    if not os.path.lexists(args.SRC):
        message = f"no targets file, and no destination: {printable(args.SRC)}"
        raise UsageError(message, path=args.SRC, hint=help_)
    return args.SRC, "", ""
