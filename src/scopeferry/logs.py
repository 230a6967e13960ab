"""Run ids, and names that are safe to print. Handlers are configured by the command line only."""

from __future__ import annotations

import logging
import os
import time

RUN_ID_LENGTH = 23


def new_run_id() -> str:
    """A run id: UTC time and 6 random hex digits, ``20261120T101500Z-4f2a9c``."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(3).hex()}"


def printable(text: str | bytes) -> str:
    r"""Text for a terminal, a log, a mail: control characters and bytes that are not UTF-8 are escaped.

    >>> printable(b"a\xff\nb")
    'a\\xff\\nb'
    """
    raw = os.fsencode(text) if isinstance(text, str) else text
    shown = raw.decode("utf-8", "backslashreplace")
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def configure(*, verbose: bool) -> None:
    """Log to stderr: everything with `verbose`, else warnings."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
