"""Folders in which nothing has changed on either side, found by several processes at once.

Only a first look for the walk of ``plan.py``, and by the same comparison: a folder that is not plainly settled is not
in the result, and the walk looks at it as at any other.
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

Settled = tuple[int, int, int, list[str]]
"""Items, bytes, extras at the destination, names of the folders in it."""


def settled(plan: Plan) -> dict[bytes, Settled]:
    """The settled folders among those that the journal knows, by their path with a slash at its end."""
    cores = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 1
    plain = plan.names is None and plan.only is None and not (plan.selection.rules or plan.everything or plan.read_only)
    if not plain or cores < 2 or not WORTH <= plan.journal.folder_count() <= MOST or not can_fork():
        return {}
    paths = [path for path, _, _ in plan.journal.folders()]
    size = -(-len(paths) // cores)
    parts = [paths[at : at + size] for at in range(0, len(paths), size)]
    return spread(lambda part: _look(plan, part), parts)


class _MovedError(Exception):
    """Something is to be done or said in a folder."""


class _Look(FolderMerge):
    """The merge of a folder that ends with the first item that is not settled."""

    def _judge(self, *_: Any) -> None:
        raise _MovedError


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
    if plan.folder_state(system.folder_stat(folder), twin, journal.folder_facts(prefix)) is not None:
        raise _MovedError
    merge = _Look(plan, head.rstrip("/"), head, folder, twin)
    with system.scan(folder) as listing:
        entries = list(islice(listing, CHUNK + 1))
    rows = journal.raw_folder(prefix)
    if len(entries) > CHUNK:
        raise _MovedError
    merge.entries(entries, rows, None)
    if rows or merge.events:  # something vanished, or there is something to say
        raise _MovedError
    names = {entry.name for entry in entries}
    with system.scan(twin) as listing:
        extra = [entry.name for entry in listing if entry.name not in names]
    if any(publish.part_hash(name) is not None for name in extra):
        raise _MovedError
    return merge.count, merge.bytes, len(extra), merge.folders
