"""What a job returns: counts, problems, and the exit code that they give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scopeferry.errors import CODES, exit_code

MAX_PROBLEMS = 10_000  # listed in full; the rest is counted


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that went wrong, or a note: a stable code, the path, a sentence, and the next step."""

    code: str
    path: str
    message: str
    hint: str = ""

    @property
    def is_note(self) -> bool:
        """Does it leave the exit code alone?"""
        return CODES[self.code][0] == 0


@dataclass(slots=True)
class Result:
    """How a run ended. Counts are items; ``bytes`` what was moved; ``lost`` counts what could not be kept, by kind."""

    command: str
    run: str = ""
    source: str = ""
    destination: str = ""
    items: int = 0
    bytes: int = 0
    copied: int = 0
    adopted: int = 0
    checked: int = 0
    replaced: int = 0
    repaired: int = 0
    skipped: int = 0
    verified: int = 0
    failed: int = 0
    extras: int = 0
    elapsed_s: float = 0.0
    state: str = ""
    read_back: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    codes: set[str] = field(default_factory=set)
    tree_digest: str = ""
    manifest: str = ""
    record: str = ""
    receipt: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """The code of ``specs/cli.md`` that all problems together give."""
        return exit_code(self.codes)

    @property
    def ok(self) -> bool:
        """Done, and verified at the level asked for?"""
        return self.exit_code == 0

    def add(self, code: str, path: str, message: str, hint: str = "") -> None:
        """Note a problem; the first 10,000 are listed."""
        self.codes.add(code)
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(code, path, message, hint or CODES[code][2]))

    def as_dict(self) -> dict[str, Any]:
        """The envelope of ``--json``."""
        return {
            "schema": 1,
            "command": self.command,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "run": self.run,
            "source": self.source,
            "destination": self.destination,
            "items": self.items,
            "bytes": self.bytes,
            "copied": self.copied,
            "skipped": self.skipped,
            "verified": self.verified,
            "failed": self.failed,
            "elapsed_s": round(self.elapsed_s, 3),
            "problems": [{"code": p.code, "path": p.path, "message": p.message, "hint": p.hint} for p in self.problems],
            "problem_count": self.problem_count,
            "adopted": self.adopted,
            "checked": self.checked,
            "replaced": self.replaced,
            "repaired": self.repaired,
            "extras": self.extras,
            "state": self.state,
            "read_back": self.read_back,
            "lost": self.lost,
            "tree_digest": self.tree_digest,
            "manifest": self.manifest,
            "record": self.record,
            "receipt": self.receipt,
            **self.details,
        }
