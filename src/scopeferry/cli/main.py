"""The command: find the module of the command that was called, run it, and turn whatever happens into an exit code.

No error is a traceback: it is the last line, with a code and the next step (``--verbose`` shows where it came from).
Only the module that was called is imported, and only its parser is built.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from scopeferry.cli.console import Console, keep_standard_descriptors
from scopeferry.cli.signals import Stop, raising
from scopeferry.errors import Failed, Interrupted, ScopeferryError, UsageError
from scopeferry.logs import bind_command

#: command -> (its module, how it is called, what it is for)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "transfer": ("transfer", "transfer SRC DST", "verified copy of a finished folder; resumable"),
    "live": ("live", "live SRC DST", "copy while it is being written, and prove the copy equal at the end"),
    "verify": ("verify", "verify DST [SRC]", "read a copy again, against its manifest or the source"),
    "repair": ("repair", "repair SRC DST", "send again exactly what verify finds wrong"),
    "clean": ("clean", "clean SRC --copy DST", "free the original, only after proof; a plan unless --yes"),
    "inspect": ("inspect", "inspect PATH", "what is this, is it finished, how do we know; moves nothing"),
    "status": ("status", "status [RUN]", "what runs and ran; how to go on with what died"),
    "config": ("config", "config show [--origin]", "every setting, and where its value came from"),
    "demo": ("demo", "demo [--to DIR]", "a simulated run, accidents, and how they are found"),
}
EXITS = """\
exit codes: 0 done and verified; 1 failed; 2 wrong usage; 3 some items failed; 4 differences; 5 refused; 6 source not
finished; 7 no space; 75 try again later; 130 interrupted. After anything but 0 the last line says what to do next."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    keep_standard_descriptors()
    arguments = list(sys.argv[1:] if argv is None else argv)
    bind_command(["scopeferry", *arguments])
    console = Console()
    try:
        with raising():
            return _run(arguments, console)
    except Stop as stop:
        return _failed(console, arguments, stop.reason)
    except KeyboardInterrupt:
        return _failed(console, arguments, Interrupted("interrupted"))
    except ScopeferryError as error:
        return _failed(console, arguments, error)
    except Exception as error:  # noqa: BLE001  (a bug: one line, not a page)
        return _failed(console, arguments, _internal(error), error)
    finally:
        console.close()


def _run(arguments: list[str], console: Console) -> int:
    if not arguments:
        raise UsageError("no command was named", hint="scopeferry --help")
    command = arguments[0]
    if command in {"--version", "-V"}:
        from scopeferry import __version__

        console.data(f"scopeferry {__version__}")
        return 0
    if command in {"--help", "-h", "help"}:
        console.data(overview())
        return 0
    if command not in COMMANDS:
        raise _unknown(command)
    module = importlib.import_module(f"scopeferry.cli.{COMMANDS[command][0]}")
    parser = module.parser()
    rest = arguments[1:]
    options = rest[: rest.index("--")] if "--" in rest else rest
    if "--help" in options or "-h" in options:
        console.data(parser.format_help().rstrip())
        return 0
    console.args = parser.parse(rest)
    return int(module.run(console.args, console))


def overview() -> str:
    """What `scopeferry --help` says."""
    wide = max(len(usage) for _, usage, _ in COMMANDS.values())
    lines = [f"  scopeferry {usage:<{wide}}  {about}" for _, usage, about in COMMANDS.values()]
    head = "Carries microscopy data from the instrument to the archive, unchanged, and proves it."
    return "\n".join([head, "", *lines, "", "scopeferry COMMAND --help shows its options and an example.", EXITS])


def _unknown(command: str) -> UsageError:
    from scopeferry.config import nearest

    if command.startswith("-"):
        return UsageError(f"scopeferry has no option {command}", hint="scopeferry --help")
    near = nearest(command, COMMANDS)
    hint = f"did you mean scopeferry {near}?" if near else "scopeferry --help lists the commands"
    return UsageError(f"scopeferry has no command {command!r}", hint=hint)


def _internal(error: Exception) -> ScopeferryError:
    if isinstance(error, FileNotFoundError) and not _stands_somewhere():
        hint = "change to a folder that is there, run the same command again"
        return UsageError("the folder you are in is gone", code="SF-101", hint=hint)
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f" at {at.tb_frame.f_globals.get('__name__', '?')}:{at.tb_lineno}" if at is not None else ""
    text = " ".join(str(error).split())
    return Failed(f"internal error: {type(error).__name__}: {text}{place}", code="SF-302")


def _stands_somewhere() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _failed(console: Console, arguments: list[str], error: ScopeferryError, cause: Any = None) -> int:
    """The last line of a command that came to nothing, and with ``--json`` its envelope."""
    from scopeferry.cli.face import last_words
    from scopeferry.jobs.result import Result

    if "--verbose" in arguments:
        import traceback

        for line in "".join(traceback.format_exception(cause or error)).splitlines():
            console.say(line)
    result = Result(arguments[0] if arguments and arguments[0] in COMMANDS else "scopeferry")
    if result.command == "live":
        from scopeferry.jobs.live_result import LiveResult

        result = LiveResult("live")
    result.source = getattr(console.args, "SRC", None) or ""
    result.destination = getattr(console.args, "DST", None) or ""
    result.add(error.code, error.path, str(error), error.hint)
    return last_words(console, result, as_json="--json" in arguments)
