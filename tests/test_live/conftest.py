"""Acquisitions that `live` follows: a real writer in one process, the command in another; what must hold of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from scopeferry.sources.ready import METADATA
from scopeferry.testing.accidents import Followed, Store
from scopeferry.testing.environments import Unavailable
from scopeferry.testing.slow_writer import WRITERS, SlowWriter
from scopeferry.testing.trees import differences
from scopeferry.testing.writers.serve import shots

COMMAND = str(Path(sys.executable).with_name("scopeferry"))
PATIENCE_S = 120
OURS = re.compile(r"\.sf-[0-9a-f]{16}-[0-9a-f]{8}\.part")  # not visible: a name of ours, until it is whole


@pytest.fixture(scope="session")
def _loop_of_zarr():
    """The event loop that zarr keeps for the life of a process is no file that a test left open."""
    zarr.zeros(1, store={})


def files(root: Path) -> dict[str, str]:
    """Path -> digest of every file that can be read now."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            try:
                with open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = hashlib.blake2b(file.read()).hexdigest()
            except FileNotFoundError:
                continue
    return found


def is_array(folder: Path) -> bool:
    if (folder / ".zarray").exists():
        return True
    metadata = folder / "zarr.json"
    return metadata.exists() and json.loads(metadata.read_text())["node_type"] == "array"


def arrays(root: Path) -> Iterator[Path]:
    """Folders of arrays."""
    for folder, _, _ in os.walk(root):
        if is_array(Path(folder)):
            yield Path(folder)


def by_zarr(folder: Path) -> np.ndarray:
    return zarr.open_array(str(folder), mode="r")[...]


def by_tensorstore(folder: Path) -> np.ndarray:
    driver = "zarr3" if (folder / "zarr.json").exists() else "zarr"
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(folder)}}
    return tensorstore.open(spec).result().read().result()


def entries(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(at, name), root) for at, names, more in os.walk(root) for name in [*names, *more]
    }


def assert_same(src: Path, dst: Path) -> None:
    """What ``diff -r`` says of both trees, times too; and what two libraries read from them."""
    assert not differences(src, dst)
    assert entries(src) == entries(dst)
    for folder in arrays(src):
        wanted = by_zarr(folder)
        for read in (by_zarr, by_tensorstore):
            assert np.array_equal(read(dst / folder.relative_to(src)), wanted), f"{folder} {read.__name__}"


class Follow:
    """``scopeferry live`` in another process."""

    def __init__(self, src: Path, dst: Path, *options: object) -> None:
        self.src, self.dst = src, dst
        words = [COMMAND, "live", str(src), str(dst), "--json", *map(str, options)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self) -> dict:
        """The envelope; its only target carries the details."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in err, err
        found = json.loads(out)
        assert found["exit_code"] == self.process.returncode
        return found

    def ends(self, code: int = 0) -> dict:
        """The target, after it has ended with this code; equal to its source if that is 0."""
        found = self.end()
        assert found["exit_code"] == code, found["problems"]
        if code == 0:
            assert_same(self.src, self.dst)
        return found["targets"][0]


class Acquisition:
    """A writer that does its orders while everything the source has been is remembered, and the copy looked at."""

    def __init__(self, writer: SlowWriter, name: str) -> None:
        self.writer, self.kind = writer, WRITERS[name]
        self.root = Path(writer.root)
        self.past: dict[str, set[str]] = {}
        self.seen: set[tuple[str, str]] = set()

    def do(self, *orders: dict) -> None:
        """One order at a time, shots one by one."""
        one_by_one = (shots(one) if one["do"] == "shots" else [one] for one in orders)
        for order in itertools.chain.from_iterable(one_by_one):
            self.writer.do(order)
            self.remember()

    def remember(self) -> None:
        for path, digest in files(self.root).items():
            self.past.setdefault(path, set()).add(digest)

    @contextmanager
    def watching(self, dst: Path):
        """Meanwhile look at the copy at random moments; then everything seen must have stood in the source."""
        over = threading.Event()

        def look() -> None:
            choice = random.Random(1)
            while not over.wait(choice.uniform(0, 0.1)):
                self.seen.update(files(dst).items())

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.remember()
        for path, digest in self.seen:
            if not OURS.fullmatch(os.path.basename(path)) and self._knows_versions_of(path):
                assert digest in self.past.get(path, ()), f"{path} was never so in the source"

    def _knows_versions_of(self, path: str) -> bool:
        """A library may write its metadata several times for one order."""
        name = os.path.basename(path)
        return self.kind.module == "plain" or (name not in METADATA and not self.kind.streams)


@pytest.fixture
def acquire(tmp_path, _loop_of_zarr):
    """``with acquire("zarr") as acquisition``: its store is `tmp_path/a.zarr`."""

    @contextmanager
    def run(name, root=tmp_path / "a.zarr", **how):
        try:
            writer = SlowWriter(root, name, **how)
        except Unavailable as error:
            pytest.skip(str(error))
        with writer:
            yield Acquisition(writer, name)

    return run


@pytest.fixture
def follow(tmp_path, _loop_of_zarr):
    """``follow(*options)`` starts to copy `tmp_path/a.zarr` to `tmp_path/copy.zarr`."""
    started: list[Follow] = []

    def run(*options, src=tmp_path / "a.zarr", dst=tmp_path / "copy.zarr"):
        started.append(Follow(src, dst, *options))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.wait()
        for stream in (each.process.stdout, each.process.stderr):
            stream.close()


@pytest.fixture
def store(tmp_path) -> Store:
    """A small array that is put chunk by chunk."""
    return Store(tmp_path / "a.zarr")


@pytest.fixture
def started(request, tmp_path):
    """``started(*options)`` begins to copy `store` to `tmp_path/copy`; what still runs at the end is killed."""
    running: list[Followed] = []

    def start(*options, to=tmp_path / "copy", of=None, **how):
        running.append(Followed(of or request.getfixturevalue("store"), to, *options, **how))
        return running[-1]

    yield start
    for each in running:
        if each.process.poll() is None:
            each.kill()
        for stream in (each.process.stdout, each.process.stderr):
            stream.close()
