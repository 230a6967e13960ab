"""Parsers: one for the command that was called, whose errors are one line that names the option and the next step."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from scopeferry.config import FLAGS, WRITERS, Configured, Setting, find, fold, nearest
from scopeferry.errors import UsageError

#: Options whose values `config` reads, in any command that has them: name -> (metavar, help).
VALUES = {
    "verify": ("LEVEL", "full (default), all, sample:P%%, none: what is read back from storage"),
    "digest": ("ALGO", "xxh128 (default) blake3 sha256 sha512 sha1 md5; may be repeated, the first proves"),
    "workers": ("N", "1 to 64; default 4, 16 if a side is a network file system"),
    "executor": ("NAME", "threads (default)"),
    "limit": ("RATE", "bytes a second, e.g. 50MB"),
    "on-conflict": ("DO", "other content at the destination: refuse (default), replace, keep-both"),
    "include": (
        "GLOB",
        "copy these after all, or, if it comes first, these alone; the last --include or --exclude that matches wins",
    ),
    "exclude": ("GLOB", "leave these out; ** crosses folders, a trailing / means folders"),
    "keep": ("LIST", "keep these too: owner,acl,streams"),
    "no-keep": ("LIST", "do not keep these: times,mode,links,hardlinks,holes,xattrs"),
    "names": ("HOW", "names the destination cannot hold: refuse (default), percent"),
    "patience": ("TIME", "how long to wait for a side that is gone (1h) or for room (60s)"),
    "finish": (
        "RULE",
        "copy only if it is over: marker=GLOB, grid, writer, quiet=TIME, manifest=FILE, profile=NAME, now; else exit 6",
    ),
    "wait": ("TIME", "with --finish: how long to wait for that, before exit 6"),
    "journal": ("FILE", "the journal, on a local disk"),
    "records": ("DIR", "manifest, records and receipt; default DST.scopeferry"),
    "interval": ("TIME", "how often a line is printed where there is no terminal; default 30s"),
}
#: Where an option of the same name says something else, or is only there: section -> name -> (metavar, help).
VALUES_OF = {
    "live": {
        "workers": ("N", "copies at a time, all targets together: 1 to 64; default 4"),
        "nprocs": ("N", "softcopy's: so many copies at a time for each target, 64 in all; threads, not processes"),
        "sleep-time": ("TIME", "each worker pauses so long after each file, 0.5 or 500ms; default 0"),
        "wait-for-source": ("BOOL", "true (default): wait for a source that is not there yet; false: exit 2"),
        "finish": (
            "RULE",
            "it is over if: auto (default), marker=GLOB, grid, writer, quiet=TIME, manifest=FILE, profile=NAME, now",
        ),
        "settle": ("TIME", "quiet that a full grid or the writer's end needs beside it; default 10s"),
        "expect": ("WHAT", "may chunks be absent? auto (default), dense, sparse, or a file of chunk keys"),
        "writer": ("NAME", f"what writes it: {', '.join(WRITERS)}; default auto"),
        "writer-pid": ("PID", "the process that writes it: its life and its end are evidence"),
        "watch": ("HOW", "auto (default), scan: no events of the file system, events: a scan only each minute"),
        "scan-interval": ("TIME", "between two scans; default 0.5s"),
        "limit": ("RATE", "bytes a second, all targets together, e.g. 80MB"),
        "gentle": ("HOW", "auto (default): give way to the writer; off"),
        "verify": ("LEVEL", "full (default), sample:P%%, none: what is read back from storage"),
        "on-conflict": ("DO", "other content at the destination: refuse (default), replace"),
        "stale": ("DO", "chunks that the writer dropped: aside (default) moves them into the records, keep"),
        "journal": ("FILE", "the journal, on a local disk; of one target only"),
        "records": ("DIR", "manifest, records and receipt; default DST.scopeferry; of one target only"),
    },
}
SWITCHES = {
    "strict": "what cannot be kept is a failure",
    "parents": "make the parent folders of the destination",
}


def meaning(section: str, name: str) -> tuple[str, str]:
    """(metavar, help) of a setting; a switch has no metavar."""
    if name in SWITCHES:
        return "", SWITCHES[name]
    return VALUES_OF.get(section, {}).get(name) or VALUES[name]


class Given(argparse.Action):
    """Keep a setting as it was written, in the order given."""

    def __call__(
        self, _parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Append it."""
        name = option or ""
        value = True if self.nargs == 0 else values
        namespace.given = [*namespace.given, Setting(name.removeprefix("--"), value, name, FLAGS)]


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError."""

    def __init__(self, command: str, usage: str, about: str, example: str) -> None:
        super().__init__(
            prog=f"scopeferry {command}",
            usage=f"scopeferry {usage}",
            description=about,
            epilog=f"example:\n  $ {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.color = False
        self.command = command
        self.set_defaults(given=[])

    def settings(self, *names: str, section: str = "transfer") -> None:
        """Add options that `config` reads."""
        for name in names:
            metavar, text = meaning(section, name)
            if metavar:
                self.add_argument(f"--{name}", action=Given, metavar=metavar, help=text)
            else:
                self.add_argument(f"--{name}", action=Given, nargs=0, help=text)

    def faces(self) -> None:
        """Add what every command that runs a job has."""
        self.settings("interval")
        self.add_argument("--json", action="store_true", help="one JSON object on stdout")
        self.add_argument(
            "--events", nargs="?", const="-", metavar="FILE", help="JSON Lines, an event a line as it happens"
        )
        self.verbosity()

    def verbosity(self) -> None:
        """Add what every command has."""
        self.add_argument("--quiet", action="store_true", help="no progress; problems and the last line only")
        self.add_argument("--verbose", action="store_true", help="log lines, and tracebacks of errors")

    def error(self, message: str) -> NoReturn:
        """One line that names what is wrong and what was probably meant."""
        help_ = f"scopeferry {self.command} --help"
        if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            raise self._unknown(match[1], help_)
        if match := re.match(r"the following arguments are required: (.*)", message):
            raise UsageError(f"{self.prog} needs {match[1]}", code="SF-100", hint=f"{self.usage}, or {help_}")
        if match := re.match(r"argument (\S+): expected .*", message):
            raise UsageError(f"{match[1]} needs a value", code="SF-105", hint=help_)
        if match := re.match(r"argument (\S+): ignored explicit argument (.*)", message):
            raise UsageError(f"{match[1]} takes no value: {match[2]}", code="SF-105", hint=help_)
        raise UsageError(message, code="SF-100", hint=help_)

    def _unknown(self, found: str, help_: str) -> UsageError:
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        word = next((word for word in found.split() if word.startswith("-")), "")
        if not word:
            return UsageError(f"{self.prog} does not take {found!r}", code="SF-100", hint=f"{self.usage}, or {help_}")
        near = nearest(word.partition("=")[0], options)
        hint = f"did you mean {near}?" if near else help_
        return UsageError(f"{self.prog} has no option {word}", code="SF-100", hint=hint)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options. ``--events`` before a path takes no FILE where the path is needed."""
        try:
            return self.parse_args(arguments)
        except UsageError as error:
            if "--events" not in arguments or " needs " not in str(error):
                raise
            return self.parse_args(["--events=-" if word == "--events" else word for word in arguments])


def configured(args: argparse.Namespace, section: str = "transfer") -> Configured:
    """The settings of a section: files, environment and the flags that were given."""
    return fold(section, [*find(section, os.environ), *args.given])
