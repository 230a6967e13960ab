"""What has not changed on either side, found by several processes at once.

Only a first look for the walk of ``plan.py``, and by the same comparison: what is not plainly settled is left to the
walk by name, and a folder that is not as the journal has it is not in the result; the walk looks at it as at any other.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

from scopeferry.copying.plan import CHUNK, FolderMerge, Plan
from scopeferry.errors import ScopeferryError
from scopeferry.kernel import publish
from scopeferry.kernel.journal import Journal
from scopeferry.kernel.publish import Folders, system
from scopeferry.kernel.spread import can_fork, spread

WORTH = 64  # folders; fewer are walked sooner than a fork is made
MOST = 200_000

Settled = tuple[int, int, int, list[str], list[str]]
"""Settled items, their bytes, extras at the destination, names of the folders in it, names that are to be judged."""


def settled(plan: Plan) -> dict[bytes, Settled]:
    """What is settled in the folders that the journal knows, by their path with a slash at its end."""
    cores = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1
    plain = plan.names is None and plan.only is None and not (plan.selection.rules or plan.everything or plan.read_only)
    if not plain or cores < 2 or not WORTH <= plan.journal.folder_count() <= MOST or not can_fork():
        return {}
    paths = [path for path, _, _ in plan.journal.folders()]
    size = -(-len(paths) // cores)
    parts = [paths[at : at + size] for at in range(0, len(paths), size)]
    return spread(lambda part: _look(plan, part), parts)


class _MovedError(Exception):
    """Something is to be done or said in a folder beyond single items."""


class _Look(FolderMerge):
    """The merge of a folder that leaves to the walk what is not settled."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.left: list[str] = []
        self.left_bytes = 0

    def _judge(self, name: str, _raw: bytes, facts: os.stat_result, *_: Any) -> None:
        self.left.append(name)
        self.left_bytes += facts.st_size


def _look(plan: Plan, paths: list[bytes]) -> dict[bytes, Settled]:
    found: dict[bytes, Settled] = {}
    mine = plan.apart()
    with (
        Journal.reading(plan.journal.path) as journal,
        plan.source.folders() as here,
        Folders(plan.store.root) as there,
    ):
        for path in paths:
            try:
                found[path] = _look_at(mine, journal, path, here, there)
            except (_MovedError, OSError, ScopeferryError):
                continue
    return found


def _look_at(plan: Plan, journal: Journal, prefix: bytes, here: Folders, there: Folders) -> Settled:
    head = os.fsdecode(prefix)
    folder, twin = here.open(head.rstrip("/")), there.open(head.rstrip("/"))
    merge = _Look(plan, head.rstrip("/"), head, folder, twin)
    with system.scan(folder) as listing:  # its entries are looked at while it is open
        entries = list(islice(listing, CHUNK + 1))
        rows = journal.raw_folder(prefix)
        if len(entries) > CHUNK:
            raise _MovedError
        merge.entries(entries, rows, None)
    if rows or merge.events:  # something vanished, or there is something to say
        raise _MovedError
    names = {entry.name for entry in entries}
    if plan.source_only:
        return merge.count - len(merge.left), merge.bytes - merge.left_bytes, 0, merge.folders, merge.left
    with system.scan(twin) as listing:
        extra = [entry.name for entry in listing if entry.name not in names]
    if any(publish.part_hash(name) is not None for name in extra):
        raise _MovedError
    return merge.count - len(merge.left), merge.bytes - merge.left_bytes, len(extra), merge.folders, merge.left
