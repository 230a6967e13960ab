"""The record: an append-only chain that survives torn lines, and the one function that folds it."""

from __future__ import annotations

import contextlib
import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopeferry.copying import record
from scopeferry.copying.expected import Expected
from scopeferry.copying.record import FOLDER, Record
from scopeferry.errors import UsageError
from scopeferry.kernel import journal as states
from scopeferry.kernel.journal import Journal
from scopeferry.testing.trees import mutated

HEADER = {"run": "r", "digests": ["xxh128", "sha256"], "sources": ["/src"], "destination": "/dst"}
ONE, OTHER = "11" * 16, "22" * 16


def generation(folder, *entries, end="complete", header=None) -> str:
    os.makedirs(folder, exist_ok=True)
    rec = Record(str(folder), {**HEADER, **(header or {})})
    for entry in entries:
        rec.add(json.dumps(entry))
    rec.begin()
    rec.flush()
    if end is not None:
        rec.end(state=end)
    rec.close()
    return rec.path


def copied(path, digest=ONE, **more) -> dict:
    facts = {"path": path, "kind": "file", "size": 5, "mtime_ns": 7, "mode": 0o644, "digest": {"xxh128": digest}}
    return {**facts, "action": "copied", "read_back": "storage", "at": 1.5, **more}


def folded(folder) -> dict[bytes, object]:
    with Expected() as expected:
        record.fold(str(folder), expected, whole=True)
        return {item.path: item for item in expected.items()}


def rows(folder, tmp_path, after=0) -> dict[bytes, states.Row]:
    with Journal(str(tmp_path / "journal.sqlite")) as journal:
        record.fold(str(folder), journal, after)
        return dict(journal.entries())


# -- writing ---------------------------------------------------------------------------------------------------------


def test_a_run_that_changes_nothing_leaves_no_generation(tmp_path):
    rec = Record(str(tmp_path / "r"), HEADER)
    rec.flush()
    rec.end(state="complete")
    assert not (tmp_path / "r").exists()


def test_generations_are_numbered_and_chained(tmp_path):
    for number in range(3):
        generation(tmp_path, copied(f"file{number}"))
    assert [os.path.basename(path) for path in record.generations(str(tmp_path))] == [
        "0001.jsonl",
        "0002.jsonl",
        "0003.jsonl",
    ]
    assert record.check_chain(str(tmp_path)) == []
    first, second, _ = (next(record.lines(path)) for path in record.generations(str(tmp_path)))
    assert first["previous"] is None
    assert second["previous"] == {"name": "0001.jsonl", "sha256": record.sha256_of(str(tmp_path / "0001.jsonl"))}


def test_more_than_9999_generations_stay_in_order(tmp_path):
    for number in (9999, 10000, 2):
        (tmp_path / f"{number:04}.jsonl").touch()
    assert [record.number_of(path) for path in record.generations(str(tmp_path))] == [2, 9999, 10000]


def test_nobody_s_generation_is_written_over(tmp_path):
    generation(tmp_path, copied("a"))
    (tmp_path / "0002.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):  # noqa: PT011
        generation(tmp_path, copied("b"))
    assert not (tmp_path / "outside").exists()


BROKEN = {
    "a byte": lambda path: path.write_bytes(path.read_bytes().replace(b'"size": 5', b'"size": 6')),
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no header": lambda path: path.write_bytes(b"[]\n"),
    "binary": lambda path: path.write_bytes(os.urandom(100)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_chain_is_told(tmp_path, case):
    for name in "abc":
        generation(tmp_path, copied(name))
    BROKEN[case](tmp_path / "0002.jsonl")
    assert record.check_chain(str(tmp_path)) != []


# -- torn last lines -------------------------------------------------------------------------------------------------


def test_every_cut_of_a_killed_run_is_ended_and_read(tmp_path):
    """Wherever the last line is torn: whole entries are kept, the torn one is ignored, the chain goes on."""
    path = generation(tmp_path, copied("a"), copied("b"), end=None)
    whole = Path(path).read_bytes()
    ends = [at for at in range(len(whole) + 1) if whole[:at].endswith(b"\n")]
    for cut in range(len(whole) + 1):
        for old in record.generations(str(tmp_path)):
            os.unlink(old)
        with open(path, "wb") as file:
            file.write(whole[:cut])
        assert record.end_cut_off(str(tmp_path)) == "0001.jsonl"
        assert record.end_cut_off(str(tmp_path)) is None  # closed once
        lines = sum(at <= cut for at in ends)
        wanted = {b"a", b"b"} if lines == 3 else {b"a"} if lines == 2 else set()
        torn_whole = cut + 1 in ends  # all but the LF: the line is there
        if torn_whole:
            wanted = {2: {b"a"}, 3: {b"a", b"b"}}.get(lines + 1, set())
        assert set(folded(tmp_path)) == wanted, cut
        generation(tmp_path, copied("later"))
        assert record.check_chain(str(tmp_path)) == [], cut
        assert b"later" in folded(tmp_path)


def test_a_run_that_was_killed_before_its_first_line_says_nothing(tmp_path):
    generation(tmp_path, copied("a"))
    for torn in (b"", b'{"format": "scope'):
        (tmp_path / "0002.jsonl").write_bytes(torn)
        assert [end["state"] for _, end in record.headers(str(tmp_path))] == ["complete"]
        record.end_cut_off(str(tmp_path))
        assert [end["state"] for _, end in record.headers(str(tmp_path))] == ["complete"]
        assert record.check_chain(str(tmp_path)) == []


def test_a_torn_line_in_the_middle_is_named(tmp_path):
    path = generation(tmp_path, copied("a"), copied("b"))
    lines = Path(path).read_text().splitlines()
    lines[1] = lines[1][:20]
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="line 2"):
        folded(tmp_path)


def test_a_planted_link_is_not_ended(tmp_path):
    (tmp_path / "outside").write_bytes(b"canary")
    (tmp_path / "r").mkdir()
    (tmp_path / "r/0001.jsonl").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError):  # noqa: PT011
        record.end_cut_off(str(tmp_path / "r"))
    assert (tmp_path / "outside").read_bytes() == b"canary"


def test_the_last_end(tmp_path):
    assert record.last_end(str(tmp_path)) == {}
    generation(tmp_path, copied("a"), end="partial")
    assert record.last_end(str(tmp_path))["state"] == "partial"
    generation(tmp_path, copied("b"), end=None)
    assert record.last_end(str(tmp_path)) == {}


# -- folding -----------------------------------------------------------------------------------------------------------


def test_the_last_word_wins(tmp_path):
    generation(tmp_path, copied("a"), copied("b"))
    generation(
        tmp_path, copied("a", OTHER, action="replaced"), {"path": "c", "kind": "file", "action": "failed", "size": 1}
    )
    found = folded(tmp_path)
    assert set(found) == {b"a", b"b"}
    assert found[b"a"].digest.hex() == OTHER
    kept = rows(tmp_path, tmp_path)
    assert (kept[b"a"].digest.hex(), kept[b"b"].digest.hex(), kept[b"a"].state) == (OTHER, ONE, states.DONE)


def test_what_a_later_line_is_silent_about_stays_if_the_bytes_are_the_same(tmp_path):
    both = {"xxh128": ONE, "sha256": "33" * 32}
    generation(tmp_path, copied("a", xattrs={"user.x": "eA=="}), copied("b"))
    generation(tmp_path, {"path": "a", "kind": "file", "size": 5, "digest": both, "action": "checked", "at": 3.0})
    item = folded(tmp_path)[b"a"]
    assert (item.mode, item.mtime_ns, json.loads(item.xattrs), set(item.digests)) == (
        0o644,
        7,
        {"user.x": "eA=="},
        {"xxh128", "sha256"},
    )
    generation(tmp_path, copied("a", OTHER, action="replaced"))
    item = folded(tmp_path)[b"a"]
    assert (set(item.digests), item.xattrs) == ({"xxh128"}, None)


def test_a_further_digest_does_not_outlive_its_bytes_in_a_journal(tmp_path):
    both = {"xxh128": ONE, "sha256": "33" * 32}
    generation(tmp_path, copied("a", digest=None) | {"digest": both})
    generation(tmp_path, copied("a", OTHER, action="replaced"))
    with Journal(str(tmp_path / "j.sqlite")) as journal:
        record.fold(str(tmp_path), journal)
        assert journal.detail(b"", b"a", "digest:sha256") is None


def test_what_was_not_kept_is_not_expected(tmp_path):
    generation(tmp_path, copied("a", lost=["times"]), copied("b", mode=0o4755))
    generation(tmp_path, copied("c"), header={"keep": ["xattrs"]})
    found = folded(tmp_path)
    assert (found[b"a"].mtime_ns, found[b"a"].mode) == (None, 0o644)
    assert (found[b"b"].mode, found[b"c"].mtime_ns, found[b"c"].mode) == (0o755, None, None)


def test_kinds(tmp_path):
    generation(
        tmp_path,
        {"path": "", "kind": "folder", "mode": 0o755, "mtime_ns": 1, "action": "copied"},
        {"path": "sub", "kind": "folder", "mode": 0o700, "mtime_ns": 1, "action": "copied"},
        {"path": "sub/link", "kind": "link", "size": 3, "mtime_ns": 9, "target": "a\udcff", "action": "copied"},
        copied("sub/file"),
        copied("sub/hard", kind="hardlink", leader="sub/file"),
        copied("x:y", stored="x%3Ay"),
        {**copied("raw"), "path_b64": "/w=="},
    )
    found = folded(tmp_path)
    assert [found[path].kind for path in (b"", b"sub", b"sub/link", b"sub/hard")] == [
        FOLDER,
        FOLDER,
        states.SYMLINK,
        states.HARDLINK,
    ]
    assert os.fsencode(found[b"sub/link"].target) == b"a\xff"
    assert (found[b"x%3Ay"].origin, found[b"sub/hard"].leader) == (b"x:y", b"sub/file")
    assert b"\xff" in found
    with Journal(str(tmp_path / "j.sqlite")) as journal:
        record.fold(str(tmp_path), journal)
        assert {path for path, _, _ in journal.folders()} == {b"", b"sub/"}
        assert journal.detail(b"", b"x:y", "as") == b"x%3Ay"
        assert journal.detail(b"sub/", b"hard", "leader") == b"sub/file"


def test_freed_on_the_one_side_and_on_the_other(tmp_path):
    freed = {"path": "a", "kind": "file", "size": 5, "action": "freed", "copies": ["/dst"]}
    generation(tmp_path / "copy", copied("a"))
    generation(tmp_path / "copy", freed, header={"job": "clean"})
    assert folded(tmp_path / "copy")[b"a"].freed == 1
    generation(tmp_path / "source", copied("a"), copied("b"))
    generation(tmp_path / "source", freed, header={"job": "clean", "destination": "/src"})
    assert set(folded(tmp_path / "source")) == {b"b"}
    assert set(rows(tmp_path / "source", tmp_path)) == {b"b"}


def test_a_journal_catches_up(tmp_path):
    generation(tmp_path, copied("a"))
    with Journal(str(tmp_path / "j.sqlite")) as journal:
        assert record.catch_up(str(tmp_path), journal) == 0  # it never looked: it may know more than the records
        record.fold(str(tmp_path), journal)
        assert journal.get("generation") == 1
        generation(tmp_path, copied("a", OTHER, action="replaced"), copied("b"))
        assert record.catch_up(str(tmp_path), journal) == 2
        assert journal.row(b"a").digest.hex() == OTHER
        assert record.catch_up(str(tmp_path), journal) == 0


entries = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from([ONE, OTHER]),
        st.sampled_from(["copied", "replaced", "adopted", "failed"]),
    ),
    max_size=12,
)


@given(st.lists(entries, min_size=1, max_size=4))
def test_folding_is_replaying(tmp_path_factory, runs):
    folder = tmp_path_factory.mktemp("r")
    model = {}
    for run in runs:
        generation(folder, *(copied(path, digest, action=action) for path, digest, action in run))
        model.update({path.encode(): digest for path, digest, action in run if action != "failed"})
    assert {path: item.digest.hex() for path, item in folded(folder).items()} == model
    assert {path: row.digest.hex() for path, row in rows(folder, folder).items()} == model
    assert record.check_chain(str(folder)) == []


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("r")
    path = generation(folder, copied("a"))
    with open(path, "ab") as file:
        file.write(data)
    with contextlib.suppress(UsageError):
        folded(folder)
    record.check_chain(str(folder))
    record.end_cut_off(str(folder))


def test_a_huge_line_is_read_in_pieces_and_named(tmp_path):
    path = generation(tmp_path, copied("a"))
    with open(path, "ab") as file:
        file.write(b'{"path": "' + b"x" * (record.MAX_LINE + 5) + b'"}\n{}\n')
    with pytest.raises(UsageError, match="line 4"):
        folded(tmp_path)


@pytest.mark.parametrize("times", [2_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_mutated_records_are_read_or_refused_by_line(tmp_path, times):
    path = generation(tmp_path, copied("a", xattrs={"user.x": "eA=="}), copied("sub/b", stored="c", target="d"))
    whole, choice = Path(path).read_bytes(), random.Random(times)
    refused = 0
    for _ in range(times):
        Path(path).write_bytes(mutated(whole, choice))
        try:
            for _, entry in record.replay(str(tmp_path)):
                assert b".." not in entry.path.split(b"/")
        except UsageError as error:
            refused += " line " in str(error)
    assert refused > times // 10
