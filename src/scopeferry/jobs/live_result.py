"""What `live` returns: one result a target, and their sums in the envelope of every command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scopeferry.jobs.result import Result

SUMMED = ("items", "bytes", "copied", "skipped", "verified", "failed", "adopted", "checked", "replaced", "repaired",
          "extras", "problem_count")  # fmt: skip
OF_TARGET = ("name", "state", "evidence", "awaited", "acquired_bytes", "lag_s", "rate", "stale", "healed", "extras",
             "read_back", "arrays")  # fmt: skip
PARTLY = 3  # exit code where targets failed in different ways


@dataclass(slots=True)
class LiveResult(Result):
    """The sums of all targets; ``targets`` holds the result of each, ``truths`` what became of the chunks of each."""

    targets: list[Result] = field(default_factory=list)
    truths: list[dict[str, Any]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """130 if it was interrupted; the code on which all targets that failed agree; else 3."""
        codes = {target.exit_code for target in self.targets} | {Result.exit_code.fget(self)}  # type: ignore[attr-defined]
        codes.discard(0)
        if 130 in codes:
            return 130
        return codes.pop() if len(codes) == 1 else PARTLY if codes else 0

    @property
    def evidence(self) -> tuple[Any, ...]:
        """Why it ended, the strongest first; of the only target."""
        return tuple(self.targets[0].details.get("evidence", ())) if self.targets else ()

    @property
    def arrays(self) -> dict[str, Any]:
        """Path -> what is written, empty and missing; of the only target."""
        return self.truths[0] if self.truths else {}

    def sum_up(self) -> None:
        """Make the counts those of all targets."""
        for name in SUMMED:
            setattr(self, name, sum(getattr(target, name) for target in self.targets))
        self.codes = {code for target in self.targets for code in target.codes}
        self.problems = [problem for target in self.targets for problem in target.problems]
        self.lost = _added(target.lost for target in self.targets)
        self.read_back = _added(target.read_back for target in self.targets)
        for name in ("links", "unproved"):
            self.details[name] = sum(target.details.get(name, 0) for target in self.targets)
        self.details["digests"] = next((target.details.get("digests") for target in self.targets), None) or []
        if len(self.targets) == 1:
            one = self.targets[0]
            for name in ("source", "destination", "state", "tree_digest", "manifest", "record", "receipt"):
                setattr(self, name, getattr(one, name))
        else:
            states = {target.state for target in self.targets}
            self.state = states.pop() if len(states) == 1 else "partial"

    def as_dict(self) -> dict[str, Any]:
        """The envelope, with one object a target."""
        targets = []
        for target in self.targets:
            whole = target.as_dict()
            envelope = {name: whole[name] for name in Result(target.command).as_dict()}
            targets.append(envelope | {name: whole.get(name) for name in OF_TARGET})
        return Result.as_dict(self) | {"targets": targets}


def _added(counts: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            found[key] = found.get(key, 0) + value
    return found
