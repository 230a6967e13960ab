"""The one event type that every face reads: terminal, JSON lines, report, mail, dashboard."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

#: What can happen. ``found`` and ``skipped`` count many items at once; the others are about one item or the run.
KINDS = ("started", "found", "done", "skipped", "failed", "note", "finished")


@dataclass(frozen=True, slots=True)
class Event:
    """A fact: what, when (seconds since the epoch), which path, how many items and bytes, and what else there is to
    say.
    """

    kind: str
    run: str = ""
    path: str = ""
    items: int = 0
    bytes: int = 0
    data: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """For JSON Lines."""
        return {"event": self.kind, "run": self.run, "at": round(self.at, 3), "path": self.path, "items": self.items,
                "bytes": self.bytes, **self.data}  # fmt: skip
