"""What a journal holds as done, as a source asks for it."""

from __future__ import annotations

import os

from scopeferry.kernel.journal import COPY, DONE, Journal, Row
from scopeferry.sources.known import KnownByJournal, NothingKnown
from scopeferry.sources.outbox import Version


def test_a_journal_tells_what_is_done(tmp_path):
    with Journal(str(tmp_path / "journal")) as journal:
        rows = [Row(name, 0, state, 5, 6, 7) for name, state in ((b"a", DONE), (b"b", COPY), (b"\xff", DONE))]
        journal.plan(b"c/0/", rows)
        journal.plan(b"", [Row(b"top", 0, DONE, 1, 2, 3)])
        journal.commit()
        known = KnownByJournal(journal)
        odd = os.fsdecode(b"\xff")
        assert known.folder("c/0") == {"a": Version(5, 6, 7), odd: Version(5, 6, 7)}
        assert known.names("c/0", ["a", "b", "c"]) == {"a": Version(5, 6, 7)}
        assert known.names("c/0", [odd]) == {odd: Version(5, 6, 7)}
        assert known.folder("") == {"top": Version(1, 2, 3)}
        assert known.count("c/0") >= 2
        assert known.folder("not there") == known.names("not there", ["a"]) == {}


def test_nothing_known():
    known = NothingKnown()
    assert (known.folder(""), known.names("", ["a"]), known.count("")) == ({}, {}, 0)
