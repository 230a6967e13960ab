"""Every run registers: one small file ``<state>/runs/<run id>.json``, so that `status` finds it, even if killed.

The run holds a lock on its own entry for as long as it lives, taken before the entry gets its name. So a reader can
tell *running* from *dead* without touching the lock of the destination, which a run that begins might want just then.
Nothing here ever stops a run: where the state folder cannot be written, the run is not listed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from scopeferry.copying import place
from scopeferry.kernel import publish
from scopeferry.kernel.publish import system
from scopeferry.logs import host

KEPT = 1000
MAX_BYTES = 1 << 20


def folder() -> str:
    """Where runs register."""
    return os.path.join(place.state_folder(), "runs")


class Registration:
    """The entry of a run that goes on. `end` says how it ended; without that, it is a dead run. Twice is harmless."""

    def __init__(self, run: str, **facts: Any) -> None:
        self.path = os.path.join(folder(), f"{run}.json")
        self.facts = {
            "run": run,
            "state": "running",
            "host": host(),
            "pid": os.getpid(),
            "cwd": _cwd(),
            "started": time.time(),
            **facts,
        }
        self._fd = -1
        try:
            place.make_private(folder())
            prune()
            self._fd = self._publish()
        except OSError:
            return

    def end(self, state: str, exit_code: int, **facts: Any) -> None:
        """Write how it ended, and let go of it."""
        if self._fd < 0:
            return
        self.facts.update(state=state or "failed", exit_code=exit_code, ended=time.time(), **facts)
        try:
            os.close(self._publish())
        except OSError:
            pass
        os.close(self._fd)
        self._fd = -1

    def _publish(self) -> int:
        part = f"{self.path}.part"
        with suppress(FileNotFoundError):
            os.unlink(part)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            try:
                system.lock(fd)
            except OSError:
                self.facts["unlocked"] = True  # a reader then asks for the process instead
            system.write_at(fd, json.dumps(self.facts).encode(), 0)
            publish.replace(part, self.path)
        except OSError:
            os.close(fd)
            raise
        return fd


def entries() -> Iterator[dict[str, Any]]:
    """The facts of all runs, newest first, each with ``alive``; what is no entry of ours is passed over."""
    try:
        names = sorted(os.listdir(folder()), reverse=True)
    except OSError:
        return
    for name in names:
        if name.endswith(".json") and (facts := read(name.removesuffix(".json"))) is not None:
            yield facts


def read(run: str) -> dict[str, Any] | None:
    """The facts of one run, with ``alive``; None if there are none that can be read."""
    try:
        fd = os.open(os.path.join(folder(), f"{run}.json"), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | _NONBLOCK)
    except OSError:
        return None
    try:
        facts = json.loads(os.read(fd, MAX_BYTES))
        if not isinstance(facts, dict) or facts.get("run") != run or not isinstance(facts.get("state"), str):
            return None
        facts["alive"] = facts["state"] == "running" and _alive(fd, facts)
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
    return facts


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)


def _alive(fd: int, facts: dict[str, Any]) -> bool:
    try:
        if not facts.get("unlocked"):
            return not system.lock(fd, shared=True)
    except OSError:
        pass
    if facts.get("host") != host() or os.name != "posix":
        return True  # nothing here can tell
    try:
        os.kill(int(facts.get("pid", -1)), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, TypeError, OverflowError):
        return False
    return True


def prune(kept: int = KEPT) -> None:
    """Drop the oldest entries beyond the newest `kept`, but none that goes on."""
    names = os.listdir(folder())
    if len(names) <= kept:
        return
    for name in sorted(names)[:-kept]:
        facts = read(name.removesuffix(".json"))
        if facts is None or not facts["alive"]:
            try:
                os.unlink(os.path.join(folder(), name))
            except OSError:
                continue


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""
