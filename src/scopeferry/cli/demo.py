"""`demo`."""

from __future__ import annotations

import argparse

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser
from scopeferry.errors import UsageError


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "demo",
        "demo [--to DIR] [options]",
        "A simulated microscope writes, a live copy runs beside it; the copier is killed, a frame dropped, a\n"
        "bit flipped in the copy: see how each is found.",
        "scopeferry demo --to /tmp/demo",
    )
    made.add_argument("--to", metavar="DIR", help="an empty folder, or one to be made; default a temporary one")
    made.add_argument("--seed", metavar="N", default="0", help="another simulated run; default 0")
    made.add_argument("--speed", metavar="X", default="1", help="times the rate of the microscope; default 1")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout")
    made.verbosity()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Show it."""
    from scopeferry.cli.face import last_words
    from scopeferry.cli.signals import stopping
    from scopeferry.config import flag, whole
    from scopeferry.jobs.demo import demo
    from scopeferry.kernel.task import Control
    from scopeferry.logs import printable

    seed, speed = flag("--seed", args.seed, whole), flag("--speed", args.speed, _number)

    def say(line: str) -> None:
        console.data(printable(line))
        console.out.flush()

    control = Control()
    shown = None if args.quiet or args.json else say
    with stopping(control):
        result = demo(args.to, seed=seed, speed=speed, say=shown, control=control)
    return last_words(console, result, as_json=args.json)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"not a number: {text!r}", code="SF-105") from None
