"""What is done already, as a source asks for it: folder by folder, so that nobody need hold it all."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Protocol

from scopeferry.kernel.journal import DONE, Journal
from scopeferry.sources.outbox import Version


class Known(Protocol):
    """Which version of each file is done. ``folder`` is ``""`` for the root, else ``a/b``; names are decoded."""

    def folder(self, folder: str) -> Mapping[str, Version]:
        """All that is done in a folder (not below it)."""

    def names(self, folder: str, names: Collection[str]) -> Mapping[str, Version]:
        """The same for these names only."""

    def count(self, folder: str) -> int:
        """About how many are done in a folder; rather too many than too few."""


class NothingKnown:
    """Nothing is done."""

    def folder(self, folder: str) -> Mapping[str, Version]:
        """Nothing."""
        del folder
        return {}

    def names(self, folder: str, names: Collection[str]) -> Mapping[str, Version]:
        """Nothing."""
        del folder, names
        return {}

    def count(self, folder: str) -> int:
        """None."""
        del folder
        return 0


class KnownByJournal:
    """What a journal holds as DONE. For the thread that writes the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def folder(self, folder: str) -> Mapping[str, Version]:
        """See Known."""
        rows = self._journal.raw_folder(_prefix(folder)).values()
        return {os.fsdecode(row[0]): Version(row[3], row[4], row[5]) for row in rows if row[2] == DONE}

    def names(self, folder: str, names: Collection[str]) -> Mapping[str, Version]:
        """See Known."""
        rows = self._journal.rows(_prefix(folder), map(os.fsencode, names)).values()
        return {os.fsdecode(row[0]): Version(row[3], row[4], row[5]) for row in rows if row[2] == DONE}

    def count(self, folder: str) -> int:
        """See Known."""
        return self._journal.count(_prefix(folder))


def _prefix(folder: str) -> bytes:
    return os.fsencode(folder) + b"/" if folder else b""
