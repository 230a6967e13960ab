"""What every store and every task must do, as test classes: a new one adds a fixture and inherits the rest.

::

    class TestLocalStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path): ...

        def seed(self, store, key, data): ...  # without the code under test
        def look(self, store, key): ...        # the bytes under a key, None if there are none
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import xxhash

from scopeferry.errors import Interrupted, ItemError, SourceChanged
from scopeferry.kernel.publish import Mark
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.stores.store import Attributes, Entry, Prove, Upload
from scopeferry.testing.follow import Done, Follower
from scopeferry.testing.trees import random_bytes

ODD_KEYS = [
    "a",
    "with space",
    "sub/deep/b.tif",
    "-",
    "new\nline",
    "quote'\"",
    "\u00e9",
    "e\u0301",
    "a" * 200,
    ".hidden",
]


class Bytes:
    """A source file that is a piece of memory. ``fail_at`` raises at that offset; ``moved`` fails the last look."""

    def __init__(self, data: bytes, *, fail_at: int | None = None, moved: bool = False) -> None:
        self.data, self.size, self.fail_at, self.moved = data, len(data), fail_at, moved
        self.closed = 0
        self.sparse = False

    def __call__(self) -> Self:
        """An upload's ``open``."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """All of it."""
        yield 0, self.size

    def read_into(self, buffer: Any, offset: int) -> int:
        """Read at an offset."""
        if self.fail_at is not None and offset >= self.fail_at:
            raise ItemError("read error at the source", code="SF-204")
        piece = self.data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def attributes(self) -> Attributes:
        """Nothing beside the bytes."""
        return Attributes()

    def check(self) -> Mark:
        """Has it moved?"""
        if self.moved:
            raise SourceChanged("changed while it was read")
        return Mark(1, self.size, 2, 3)


class StoreContract:
    """The promise of ``stores.store.Store``: all or nothing, proved, in order, safe to repeat."""

    @pytest.fixture
    def store(self) -> Any:
        """An empty store, made by the heir."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _no_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("scopeferry.stores.local.CHANGED_WAITS_S", (0.001, 0.001, 0.001), raising=False)

    def seed(self, store: Any, key: str, data: bytes) -> None:
        """Put bytes there without the code under test."""
        raise NotImplementedError

    def look(self, store: Any, key: str) -> bytes | None:
        """The bytes there, without the code under test; None if there are none."""
        raise NotImplementedError

    def names(self, store: Any) -> set[str]:
        """Every name that a reader could see, temporary ones too, without the code under test."""
        raise NotImplementedError

    @staticmethod
    def put(store: Any, *uploads: Upload, percent: float = 100.0) -> list[Entry | Failure]:
        """Put them, one answer for each."""
        answers: list[Entry | Failure] = store.put(uploads, prove=Prove(percent), control=Control(patience_full_s=0))
        assert [type(answer).__name__ for answer in answers if not isinstance(answer, Entry | Failure)] == []
        assert len(answers) == len(uploads)
        return answers

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_what_is_put_is_there(self, store: Any, key: str) -> None:
        """Odd keys too, and the digest is that of another library."""
        data = random_bytes(1, 3_000_000)
        (entry,) = self.put(store, Upload(key, Bytes(data)))
        assert isinstance(entry, Entry)
        assert self.look(store, key) == data
        assert entry.digests["xxh128"] == xxhash.xxh3_128_digest(data)
        assert (entry.mark.size, entry.key, entry.attempts) == (len(data), key, 1)
        assert self.names(store) == {key}

    @pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
    def test_sizes_around_a_block(self, store: Any, size: int) -> None:
        """Nothing is lost or added at the edges."""
        data = random_bytes(size, size)
        self.put(store, Upload("a", Bytes(data)))
        assert self.look(store, "a") == data

    def test_many_are_answered_in_order_and_failures_stay_with_their_item(self, store: Any) -> None:
        """One answer for each, in the order asked."""
        uploads = [
            Upload(f"k{number}", Bytes(random_bytes(number, 5000), fail_at=0 if number % 3 == 1 else None))
            for number in range(12)
        ]
        answers = self.put(store, *uploads)
        for number, answer in enumerate(answers):
            assert isinstance(answer, Failure if number % 3 == 1 else Entry)
            assert answer.key == f"k{number}"
        assert self.names(store) == {f"k{number}" for number in range(12) if number % 3 != 1}

    @pytest.mark.parametrize("fail_at", [0, 1 << 20, 2 << 20])
    def test_a_source_that_fails_leaves_nothing(self, store: Any, fail_at: int) -> None:
        """All or nothing."""
        reader = Bytes(random_bytes(1, 3 << 20), fail_at=fail_at)
        (answer,) = self.put(store, Upload("a", reader))
        assert isinstance(answer, Failure)
        assert answer.code == "SF-204"
        assert self.names(store) == set()
        assert reader.closed >= 1

    def test_a_source_that_moves_leaves_nothing(self, store: Any) -> None:
        """What was read is thrown away."""
        (answer,) = self.put(store, Upload("a", Bytes(b"torn", moved=True)))
        assert isinstance(answer, Failure)
        assert (answer.code, answer.retryable) == ("SF-201", True)
        assert self.names(store) == set()

    def test_what_is_not_expected_is_not_replaced(self, store: Any) -> None:
        """Somebody's content stays."""
        self.seed(store, "a", b"theirs")
        (answer,) = self.put(store, Upload("a", Bytes(b"ours")))
        assert isinstance(answer, Failure)
        assert answer.code in {"SF-501", "SF-502"}
        assert self.look(store, "a") == b"theirs"
        assert self.names(store) == {"a"}

    def test_what_is_expected_is_replaced(self, store: Any) -> None:
        """By its mark."""
        self.put(store, Upload("a", Bytes(b"first")))
        (entry,) = self.put(store, Upload("a", Bytes(b"second"), expected=store.entry("a")))
        assert isinstance(entry, Entry)
        assert self.look(store, "a") == b"second"
        assert self.names(store) == {"a"}

    def test_a_mark_that_is_no_longer_true_replaces_nothing(self, store: Any) -> None:
        """An expectation that fails is a refusal, never an overwriting."""
        self.put(store, Upload("a", Bytes(b"first")))
        old = store.entry("a")
        store.delete("a")
        self.seed(store, "a", b"somebody's, longer")
        (answer,) = self.put(store, Upload("a", Bytes(b"second"), expected=old))
        assert isinstance(answer, Failure)
        assert self.look(store, "a") == b"somebody's, longer"

    def test_a_stopped_run_puts_nothing_more(self, store: Any) -> None:
        """The stop flag is looked at."""
        control = Control()
        control.stop(Interrupted("stop"))
        answers = store.put([Upload("a", Bytes(b"data"))], prove=Prove(), control=control)
        assert [answer.code for answer in answers] == ["SF-130"]
        assert self.names(store) == set()

    def test_bytes_are_counted(self, store: Any) -> None:
        """Copied and verified, for progress."""
        control = Control()
        store.put([Upload("a", Bytes(bytes(3 << 20)))], prove=Prove(), control=control)
        assert (control.copied, control.verified) == (3 << 20, 3 << 20)

    def test_what_is_not_to_be_proved_is_not_called_read_back(self, store: Any) -> None:
        """Honest words."""
        proved, not_proved = (
            self.put(store, Upload("a", Bytes(b"a")))[0],
            self.put(store, Upload("b", Bytes(b"b")), percent=0)[0],
        )
        assert isinstance(proved, Entry)
        assert isinstance(not_proved, Entry)
        assert proved.read_back in {"storage", "server", "mount", "memory"}
        assert not_proved.read_back == "no"

    def test_entry_and_entries_and_delete(self, store: Any) -> None:
        """Listing has every name once; deleting twice is harmless."""
        for number, key in enumerate(ODD_KEYS):
            self.put(store, Upload(key, Bytes(bytes(number))))
        found = dict(store.entries())
        assert found.keys() == set(ODD_KEYS)
        assert {key: mark.size for key, mark in found.items()} == {key: number for number, key in enumerate(ODD_KEYS)}
        assert dict(store.entries("sub")).keys() == {"sub/deep/b.tif"}
        assert store.entry("a") == found["a"]
        assert store.entry("not there") is None
        for _ in range(2):
            store.delete("a")
        assert store.entry("a") is None
        assert self.look(store, "a") is None

    def test_open_reads_what_was_put(self, store: Any) -> None:
        """And an absent key is FileNotFoundError."""
        data = random_bytes(3, 2_500_000)
        self.put(store, Upload("sub/a", Bytes(data)))
        hasher, at, block = hashlib.sha256(), 0, bytearray(1 << 20)
        with store.open("sub/a") as reader:
            assert reader.size == len(data)
            while got := reader.read_into(memoryview(block), at):
                hasher.update(memoryview(block)[:got])
                at += got
        assert hasher.digest() == hashlib.sha256(data).digest()
        with pytest.raises(FileNotFoundError):
            store.open("not there")

    def test_it_can_be_sent_to_another_process(self, store: Any) -> None:
        """Workers may be processes."""
        again = pickle.loads(pickle.dumps(store))  # noqa: S301  (our own bytes)
        self.put(again, Upload("a", Bytes(b"data")))
        assert self.look(store, "a") == b"data"


class TaskContract:
    """The promise of ``kernel.task.Task``: idempotent, picklable, one answer for each, no exception for an item."""

    @pytest.fixture
    def tasks(self) -> list[Any]:
        """Some tasks of one kind, not done yet, made by the heir."""
        raise NotImplementedError

    def result(self, task: Any) -> bytes | None:
        """What stands where the task publishes, without the code under test."""
        raise NotImplementedError

    def test_it_publishes_and_answers_in_order(self, tasks: list[Any]) -> None:
        """Outcomes, keys in order."""
        answers = type(tasks[0]).run_batch(tasks, Control())
        assert [answer.key for answer in answers] == [task.key for task in tasks]
        assert all(isinstance(answer, Outcome) for answer in answers)
        assert all(self.result(task) is not None for task in tasks)

    def test_the_same_again_gives_the_same(self, tasks: list[Any]) -> None:
        """Same revision, same bytes; never an exception."""
        type(tasks[0]).run_batch(tasks, Control())
        before = [self.result(task) for task in tasks]
        answers = type(tasks[0]).run_batch(tasks, Control())
        assert len(answers) == len(tasks)
        assert [self.result(task) for task in tasks] == before

    def test_it_can_be_sent_to_another_process(self, tasks: list[Any]) -> None:
        """Tasks, outcomes and failures are plain values."""
        again = pickle.loads(pickle.dumps(tasks))  # noqa: S301  (our own bytes)
        assert [(task.key, task.revision, task.size) for task in again] == [
            (task.key, task.revision, task.size) for task in tasks
        ]
        answers = type(again[0]).run_batch(again, Control())
        assert pickle.loads(pickle.dumps(answers)) == answers  # noqa: S301

    def test_a_stopped_run_publishes_nothing(self, tasks: list[Any]) -> None:
        """A failure for each, and no name."""
        control = Control()
        control.stop(Interrupted("stop"))
        answers = type(tasks[0]).run_batch(tasks, control)
        assert [answer.code for answer in answers] == ["SF-130"] * len(tasks)
        assert [self.result(task) for task in tasks] == [None] * len(tasks)


class SourceContract:
    """The promise of a source that grows: what is ready comes out in its last version, one version of a path at a time,
    with ticks between, and it ends once it is told so.

    The heir makes one with `source`; writers here rename, as most do.
    """

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """The folder that is written."""
        root = tmp_path / "growing"
        root.mkdir()
        return root

    def source(self, root: Path, done: Done) -> Any:
        """A source on `root` that asks `done` what is done, made by the heir: a context manager with `items`,
        `settled`, `again`, `finish`. ``*.json`` is metadata, ``complete`` the marker, ``*.tmp`` temporary, and
        ``*.slow`` whole when it is not empty.
        """
        raise NotImplementedError

    @staticmethod
    def write(root: Path, path: str, data: bytes) -> None:
        """Write a file as most writers do: under a temporary name, then renamed."""
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".tmp")
        part.write_bytes(data)
        part.replace(target)

    @contextmanager
    def following(self, root: Path, done: Done | None = None, *, slow: int = 0) -> Iterator[Follower]:
        """Somebody who follows it."""
        done = done or Done()
        with self.source(root, done) as source:
            yield Follower(source, str(root), done, slow=slow)

    def test_what_is_there_and_what_comes_is_found(self, root: Path) -> None:
        """Before, during, in new folders, and again when it is rewritten."""
        self.write(root, "c/0/0", b"before")
        with self.following(root) as follower:
            follower.until(lambda: "c/0/0" in follower.copies)
            self.write(root, "c/0/1", b"beside")
            self.write(root, "c/1/0/0", b"below")
            self.write(root, "c/0/0", b"rewritten")
            want = {"c/0/0": b"rewritten", "c/0/1": b"beside", "c/1/0/0": b"below"}
            follower.until(lambda: follower.copies == want)
            follower.to_the_end()
            assert follower.copies == want

    def test_nothing_is_missed_of_a_fast_writer(self, root: Path) -> None:
        """Many files in new folders, as fast as they can be written."""
        paths = [f"c/{number // 100}/{number // 10 % 10}/{number % 10}" for number in range(3000)]

        def writer() -> None:
            for path in paths:
                self.write(root, path, path.encode())

        with self.following(root, slow=100) as follower:
            thread = threading.Thread(target=writer)
            thread.start()
            follower.until(lambda: not thread.is_alive())
            follower.to_the_end()
        assert follower.copies == {path: path.encode() for path in paths}
        assert len(follower.order) == len(paths)

    def test_it_ticks_when_nothing_is_ready_and_ends_once(self, root: Path) -> None:
        """A tick, never silence; no end before it is told; then an end."""
        with self.following(root) as follower:
            assert [next(follower) for _ in range(50)] == [None] * 50
            self.write(root, "a", b"a")
            follower.to_the_end()
            assert follower.copies == {"a": b"a"}
            assert next(follower, "over") == "over"

    def test_what_comes_after_the_decision_is_found(self, root: Path) -> None:
        """As long as it has not ended."""
        with self.following(root) as follower:
            self.write(root, "a", b"a")
            follower.until(lambda: "a" in follower.copies)
            self.write(root, "late/b", b"b")
            self.write(root, "a", b"again")
            follower.to_the_end()
            assert follower.copies == {"a": b"again", "late/b": b"b"}

    def test_temporary_names_and_what_is_not_whole_stay(self, root: Path) -> None:
        """Until they are whole."""
        (root / "x.tmp").write_bytes(b"part")
        (root / "y.slow").touch()
        with self.following(root) as follower:
            self.write(root, "z", b"z")
            follower.until(lambda: "z" in follower.copies)
            assert set(follower.order) == {"z"}
            with open(root / "y.slow", "ab") as file:
                file.write(b"whole")
            follower.until(lambda: "y.slow" in follower.copies)
            assert set(follower.order) == {"z", "y.slow"}

    def test_metadata_first_and_the_marker_last(self, root: Path) -> None:
        """Whatever is found first."""
        for number in range(200):
            self.write(root, f"c/{number}", b"chunk")
        self.write(root, "complete", b"")
        self.write(root, "array/zarr.json", b"{}")
        with self.following(root, slow=10) as follower:
            follower.until(lambda: len(follower.copies) == 201)
            assert "complete" not in follower.order
            follower.to_the_end()
            assert follower.order[-1] == "complete"
            assert len(follower.order) == 202

    def test_metadata_comes_again(self, root: Path) -> None:
        """Also when it is written in place."""
        (root / "zarr.json").write_bytes(b"{}")
        with self.following(root) as follower:
            follower.until(lambda: "zarr.json" in follower.copies)
            with open(root / "zarr.json", "r+b") as file:
                file.write(b"[1]")
            follower.until(lambda: follower.copies["zarr.json"] == b"[1]")

    def test_a_deleted_file_is_said_to_be_gone(self, root: Path) -> None:
        """If its folder stands; and not twice."""
        for name in ("a", "b"):
            self.write(root, f"c/{name}", b"x")
        with self.following(root) as follower:
            follower.until(lambda: len(follower.copies) == 2)
            (root / "c/a").unlink()
            follower.until(lambda: follower.gone == ["c/a"])
            self.write(root, "c/a", b"back")
            follower.until(lambda: follower.copies.get("c/a") == b"back")
            follower.to_the_end()
            assert follower.gone == ["c/a"]

    def test_a_deleted_folder_says_nothing_of_its_files(self, root: Path) -> None:
        """Somebody has made room at the instrument."""
        for number in range(20):
            self.write(root, f"c/{number % 4}/{number}", b"x")
        with self.following(root) as follower:
            follower.until(lambda: len(follower.copies) == 20)
            shutil.rmtree(root / "c/1")
            shutil.rmtree(root / "c/2")
            self.write(root, "c/1/new", b"new")
            follower.until(lambda: "c/1/new" in follower.copies)
            follower.to_the_end()
            assert not [path for path in follower.gone if path.startswith("c/2")]

    def test_a_restart_gives_what_is_new_or_changed(self, root: Path) -> None:
        """And what is done stays done."""
        done = Done()
        for name in ("a", "b", "c/d", "c/e"):
            self.write(root, name, b"first")
        with self.following(root, done) as follower:
            follower.until(lambda: len(follower.copies) == 4)
        self.write(root, "c/d", b"changed")
        self.write(root, "new/f", b"new")
        (root / "c/e").unlink()
        with self.following(root, done) as follower:
            follower.until(lambda: follower.gone == ["c/e"])
            follower.to_the_end()
            assert follower.copies == {"c/d": b"changed", "new/f": b"new"}

    def test_folders_that_move(self, root: Path) -> None:
        """They are found under their new name."""
        for number in range(10):
            self.write(root, f"old/sub/{number}", b"x")
        with self.following(root) as follower:
            follower.until(lambda: len(follower.copies) == 10)
            (root / "old").rename(root / "new")
            self.write(root, "new/sub/10", b"y")
            follower.until(lambda: sum(path.startswith("new/") for path in follower.copies) == 11)
            follower.to_the_end()
            assert follower.copies["new/sub/10"] == b"y"
