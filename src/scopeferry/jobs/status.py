"""`status [RUN]`: what runs, what ran, and what died without saying so, with the command that goes on.

It reads the register of runs and the journals of those that have not ended, in short read-only transactions; it never
takes the lock of a destination and never keeps a run waiting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopeferry.copying import runs
from scopeferry.errors import UsageError
from scopeferry.jobs.result import Result
from scopeferry.logs import quoted

RUNNING, DEAD, ENDED = "running", "dead", "ended"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One run. ``progress`` is what its journal noted last; ``resume`` the command that goes on, if it makes sense.

    Of one target of `live`, ``progress`` also holds ``evidence``, ``awaited`` and ``arrays``, as its result does, and
    is kept when the run has ended.
    """

    run: str
    status: str
    facts: Mapping[str, Any]
    progress: Mapping[str, Any] = field(default_factory=dict)
    resume: str = ""
    followed_by: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        kept = {key: value for key, value in self.facts.items() if key not in {"alive", "unlocked", "state"}}
        return {
            **kept,
            "status": self.status,
            "state": self.facts["state"] if self.status == ENDED else self.status,
            "progress": dict(self.progress),
            "resume": self.resume,
            "followed_by": self.followed_by,
        }


def status(run: str | None = None) -> Result:
    """What runs and ran: ``result.details["runs"]``, newest first; of one run (or unique prefix) if it is named.

    Raises UsageError (SF-115) if there is no such run, or several.
    """
    result = Result("status", run=run or "")
    found = listed(run)
    if run is not None:
        result.run, result.source = found[0].run, str(found[0].facts.get("source", ""))
        result.destination = str(found[0].facts.get("destination", ""))
    result.items = len(found)
    result.details["runs"] = [entry.as_dict() for entry in found]
    return result


def listed(run: str | None = None) -> list[RunStatus]:
    """All runs that registered, newest first; only one if it is named."""
    known = sorted(runs.entries(), key=_began, reverse=True)
    if run is not None:
        matching = [facts for facts in known if facts["run"].startswith(run)]
        if len(matching) != 1:
            several = ", ".join(facts["run"] for facts in matching[:5])
            message = f"{run} may be {several}" if matching else f"no run {run}"
            raise UsageError(message, code="SF-115")
        return [_status(matching[0], known)]
    return [_status(facts, known) for facts in known]


def _status(facts: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> RunStatus:
    if facts["state"] != "running":
        state = ENDED
    else:
        state = RUNNING if facts["alive"] else DEAD
    progress = _progress(facts) if state != ENDED or facts.get("job") == "live" else {}
    later = _later(facts, known)
    again = state == DEAD or (state == ENDED and facts.get("exit_code") in {7, 75, 130})
    return RunStatus(facts["run"], state, facts, progress, resume(facts) if again and not later else "", later)


def _later(facts: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> str:
    """A run that has begun on the same destination since, with the same job."""
    same = [
        other["run"]
        for other in reversed(known)
        if _began(other) > _began(facts)
        and other.get("destination") == facts.get("destination")
        and other.get("job") == facts.get("job")
    ]
    return next(iter(same), "")


def _began(facts: Mapping[str, Any]) -> tuple[float, str]:
    started = facts.get("started")
    return (float(started) if isinstance(started, int | float) else 0.0, facts["run"])


def resume(facts: Mapping[str, Any]) -> str:
    """The command that goes on, as a shell takes it; from the folder where it was given, if that matters."""
    words = facts.get("command")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return ""
    command = " ".join(map(quoted, words))
    cwd = facts.get("cwd")
    return f"cd {quoted(cwd)} && {command}" if isinstance(cwd, str) and cwd and cwd != _here() else command


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _progress(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the journal noted last about a run; nothing if it cannot be read now."""
    path = facts.get("journal")
    if not isinstance(path, str) or not os.path.isfile(path):
        return {}
    import json
    import sqlite3

    from scopeferry.kernel.journal import reading_only

    try:
        db = reading_only(path)
        try:
            row = db.execute("SELECT data FROM runs WHERE id=?", (facts["run"],)).fetchone()
        finally:
            db.close()
        found = json.loads(row[0]) if row else {}
    except (sqlite3.Error, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
