"""Run ids, names that are safe to print, commands that a shell takes as they were. Handlers: the command line only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")
_command: list[str] = []


def new_run_id() -> str:
    """A run id: UTC time and 6 random hex digits, ``20261120T101500Z-4f2a9c``."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(3).hex()}"


def host() -> str:
    """The name of this machine."""
    if hasattr(os, "uname"):
        return os.uname().nodename
    import socket  # costs more than all that a rerun with nothing to do needs

    return socket.gethostname()


def user() -> str:
    """The name of the user that this process runs as."""
    if not hasattr(os, "geteuid"):
        import getpass

        return getpass.getuser()
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def printable(text: str | bytes) -> str:
    r"""Text for a terminal, a log, a mail: control characters and bytes that are not UTF-8 are escaped.

    >>> printable(b"a\xff\nb")
    'a\\xff\\nb'
    """
    if isinstance(text, str) and text.isprintable():
        return text
    raw = os.fsencode(text) if isinstance(text, str) else text
    shown = raw.decode("utf-8", "backslashreplace")
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def quoted(word: str) -> str:
    r"""One word of a command, as a shell takes it; bytes that are not UTF-8 and control characters too.

    >>> print(quoted("a"), quoted("it's 1"), quoted("a\nb"), quoted(""))
    a 'it'"'"'s 1' $'a\nb' ''
    """
    if word and _SAFE.issuperset(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\"'\"'") + "'"
    raw = os.fsencode(word)
    named = {10: "\\n", 13: "\\r", 9: "\\t", 39: "\\'", 92: "\\\\"}
    return "$'" + "".join(named.get(c) or (chr(c) if 32 <= c < 127 else f"\\x{c:02x}") for c in raw) + "'"


def bind_command(words: Sequence[str]) -> None:
    """Remember the command that was given, for records, receipts and `status`; called once, by the command line."""
    _command[:] = words


def command_words(*otherwise: str) -> tuple[str, ...]:
    """The words of the command that runs; `otherwise` where a program called a job itself."""
    return tuple(_command) or otherwise


def command_line(*otherwise: str) -> str:
    """The command that runs, as a shell takes it."""
    return " ".join(map(quoted, command_words(*otherwise)))


def configure(*, verbose: bool, write: Callable[[str], object]) -> None:
    """Hand log lines to `write`: everything of ours with `verbose`, else warnings."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    if verbose:
        logging.getLogger("scopeferry").setLevel(logging.DEBUG)
