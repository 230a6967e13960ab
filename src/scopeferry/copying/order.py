"""What all items of one copy have in common: its two sides, and how it is to be done."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from scopeferry.kernel.journal import Journal
from scopeferry.sources.tree import TreeSource
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Prove


@dataclass(frozen=True, slots=True)
class Order:
    """What all items of a run have in common; picklable. ``set_aside``: folder below the record folder for what is
    healed. ``tends``: nobody else works in the copy, so what is ours and differs there is healed, and a source that
    became shorter is followed. ``pause_s``: what a worker waits after each batch.
    """

    source: TreeSource
    store: LocalStore
    prove: Prove
    policy: str
    recipe: int
    set_aside: str
    names: Any = None
    algorithms: dict[int, str] = field(default_factory=dict)
    tends: bool = False
    pause_s: float = 0.0


def stored_path(journal: Journal, names: Any, path: bytes) -> str:
    """Where the copy of an item stands: under its own name, a mapped one, or beside what somebody else put there.

    Raises ItemError (SF-207, SF-208) for a name that cannot stand there.
    """
    head, slash, name = path.rpartition(b"/")
    noted = journal.detail(head + slash, name, "as")
    if noted is not None:
        return os.fsdecode(noted)
    return os.fsdecode(path) if names is None else str(names.full(os.fsdecode(path)))
