"""What all items of one copy have in common: its two sides, and how it is to be done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scopeferry.sources.tree import TreeSource
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Prove


@dataclass(frozen=True, slots=True)
class Order:
    """What all items of a run have in common; picklable. ``set_aside``: folder below the record folder for what is
    healed.
    """

    source: TreeSource
    store: LocalStore
    prove: Prove
    policy: str
    recipe: int
    set_aside: str
    names: Any = None
    algorithms: dict[int, str] = field(default_factory=dict)
