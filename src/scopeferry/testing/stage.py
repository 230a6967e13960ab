"""Where a demo plays: a folder, real commands below it, each in a process of its own, and checks of what came of them.

A check is made by looking, with SHA-256 and `lstat`; what a command says is believed only where nobody can look. The
state of the commands lies in the folder too, and settings of the user do not reach them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import IO, Any

from scopeferry.errors import Failed
from scopeferry.kernel import publish
from scopeferry.kernel.task import Control
from scopeferry.testing.leash import leashed
from scopeferry.testing.runs import Seen, look

PATIENCE_S = 120.0  # a command that takes longer hangs
POLL_S = 0.01
STATE, OUTPUT = "state", "output"
STATE_VARIABLES = ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "APPDATA", "PROGRAMDATA")


class Broken(Failed):
    """A check failed: what should be shown is not so."""

    default = "SF-306"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. The sentence says what must be so, and holds nothing that differs between runs."""

    name: str
    sentence: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended: its exit code, what it wrote, and with ``--json`` its envelope."""

    code: int
    out: str
    err: str

    @property
    def envelope(self) -> Mapping[str, Any]:
        """The object on stdout; empty if there is none."""
        try:
            found = json.loads(self.out)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def problems(self) -> list[tuple[str, str]]:
        """(code, path) of each problem in the envelope."""
        return [(problem["code"], problem["path"]) for problem in self.envelope.get("problems", ())]


@dataclass(frozen=True, slots=True)
class Running:
    """A command that runs, or has ended and was not looked at yet."""

    words: Sequence[str]
    child: subprocess.Popen[bytes]
    out: IO[bytes]
    err: IO[bytes]

    @property
    def ended(self) -> bool:
        """Does it run no more?"""
        return self.child.poll() is not None


@dataclass(slots=True)
class Stage:
    """The folder with a source and a copy, how things are shown there, and what was checked so far."""

    folder: str
    source_name: str
    copy_name: str
    say: Callable[[str], object]
    control: Control
    checks: list[Check] = field(default_factory=list)
    ran: int = 0
    open: ExitStack = field(default_factory=ExitStack)
    _same_inode: bool = True

    def __post_init__(self) -> None:
        self._same_inode = publish.disk(self.folder).steady

    # -- what is there -------------------------------------------------------------------------------------------------

    def at(self, path: str) -> str:
        """A path below the folder."""
        return os.path.join(self.folder, *path.split("/"))

    def source(self) -> dict[str, Seen]:
        """What the source holds now."""
        return look(self.at(self.source_name))

    def copy(self) -> dict[str, Seen]:
        """What the copy holds now, temporary files too."""
        return look(self.at(self.copy_name))

    def both(self) -> tuple[dict[str, Seen], dict[str, Seen]]:
        """What source and copy hold now."""
        return self.source(), self.copy()

    def arrived(self, folder: str) -> int:
        """How many files bear their final names at the copy, below folders of this name; none is read."""
        walked = (at for at in os.walk(self.at(self.copy_name)) if folder in at[0].split(os.sep))
        paths = (os.path.join(folder, name) for folder, _, names in walked for name in names if not is_part(name))
        return sum(not os.path.islink(path) for path in paths)

    def untouched(self, before: Mapping[str, Seen], after: Mapping[str, Seen]) -> bool:
        """Is everything that was there before still the same thing? Links and folders are not asked for their times."""
        return all(self._thing(seen) == self._thing(after.get(path)) for path, seen in before.items())

    def _thing(self, seen: Seen | None) -> tuple[Any, ...] | None:
        if seen is None or not seen.is_file:
            return seen and seen[:1]
        return seen if self._same_inode else seen[:3]

    # -- what happens --------------------------------------------------------------------------------------------------

    def check(self, name: str, sentence: str, ok: bool) -> None:
        """Note a check and show it; raises Broken if it failed."""
        self.checks.append(Check(name, sentence, ok))
        self.say(f"   {'ok ' if ok else 'NO '} {sentence}")
        if not ok:
            raise Broken(f"check '{name}' failed: {sentence}", hint=f"look at what is left in {self.folder}")

    def run(self, *words: str) -> Ran:
        """Run ``scopeferry WORDS...`` to its end; see `end`."""
        return self.end(self.start(*words))

    def start(self, *words: str) -> Running:
        """Begin ``scopeferry WORDS...``. What still runs when ``open`` is closed is killed."""
        self.say(f"   $ scopeferry {' '.join(words)}")
        self.ran += 1
        path = os.path.join(self.at(OUTPUT), f"{self.ran}-{words[0]}")
        out, err = (self.open.enter_context(_new(f"{path}.{stream}")) for stream in ("out", "err"))
        how = {"cwd": self.folder, "env": self._environment(), "stdout": out, "stderr": err}
        return Running(words, self.open.enter_context(leashed(words, **how)), out, err)

    def end(self, running: Running) -> Ran:
        """Wait until it ends, and show its last line.

        Raises Broken if it hangs, and the reason why `control` was stopped.
        """
        self.wait(f"{running.words[0]} has not ended", lambda: running.ended)
        ran = Ran(int(running.child.returncode), _text(running.out), _text(running.err))
        for line in ran.err.splitlines()[-1:]:
            if line.startswith("exit "):
                self.say(f"     {line}")
        return ran

    def wait(self, hangs: str, over: Callable[[], bool]) -> None:
        """Wait until it is so; raises Broken if it never is, and the reason why `control` was stopped."""
        looks = PATIENCE_S / POLL_S  # counted, since a machine that was asleep or paused has not waited
        while not over():
            self.control.check()
            if (looks := looks - 1) < 0:
                raise Broken(f"{hangs} within {PATIENCE_S:.0f} s")
            self.control.sleep(POLL_S)
        self.control.check()  # Ctrl-C ends a child too

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SCOPEFERRY_")}
        state = dict.fromkeys(STATE_VARIABLES, self.at(STATE))
        return {**kept, **state, "PYTHONIOENCODING": "utf-8:backslashreplace", "NO_COLOR": "1"}


def is_part(path: str) -> bool:
    """Is it a temporary file of a copy?"""
    name = path.rpartition("/")[2]
    return name.startswith(publish.PART_PREFIX) and name.endswith(publish.PART_SUFFIX)


def _new(path: str) -> IO[bytes]:
    return open(path, "w+b")


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode("utf-8", "backslashreplace"))
