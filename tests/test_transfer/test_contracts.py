"""The local store and the copy's task against the shipped contracts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scopeferry.copying.copy import CopyItem
from scopeferry.copying.order import Order
from scopeferry.errors import Temporary
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.journal import Row, fingerprint
from scopeferry.kernel.task import Control
from scopeferry.sources.tree import TreeSource
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Prove, Upload
from scopeferry.testing.contracts import Bytes, StoreContract, TaskContract
from scopeferry.testing.faulty import Faulty
from scopeferry.testing.trees import random_bytes


def local(folder) -> LocalStore:
    folder.mkdir(exist_ok=True)
    return LocalStore(str(folder), publish.disk(str(folder)))


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return local(tmp_path / "store")

    def seed(self, store, key, data):
        path = os.path.join(store.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)

    def look(self, store, key):
        try:
            with open(os.path.join(store.root, key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def names(self, store):
        return {
            os.path.relpath(os.path.join(folder, name), store.root)
            for folder, _, names in os.walk(store.root)
            for name in names
        }


class TestFaultyLocalStore(TestLocalStore):
    """A wrapper that has nothing to do changes nothing."""

    @pytest.fixture
    def store(self, tmp_path):
        class Wrapped(Faulty):
            root = str(tmp_path / "store")

        globals()["Wrapped"] = Wrapped
        Wrapped.__qualname__ = "Wrapped"
        return Wrapped(local(tmp_path / "store"))


class TestCopyItem(TaskContract):
    @pytest.fixture
    def tasks(self, tmp_path):
        (tmp_path / "src/sub").mkdir(parents=True)
        store = local(tmp_path / "dst")
        source = TreeSource(str(tmp_path / "src"), publish.disk(str(tmp_path / "src")))
        order = Order(source, store, Prove(), "refuse", 1, "set_aside/x")
        made = []
        for number, name in enumerate(["a", "b", "sub/c"]):
            path = tmp_path / "src" / name
            path.write_bytes(random_bytes(number, 5000))
            facts = path.stat()
            row = Row(
                os.path.basename(name).encode(), states.FILE, states.COPY, facts.st_size, facts.st_mtime_ns,
                fingerprint(facts.st_ino, facts.st_ctime_ns),
            )  # fmt: skip
            made.append(CopyItem(order, name, row))
        return made

    def result(self, task):
        path = os.path.join(task.order.store.root, task.key)
        if not os.path.exists(path):
            return None
        with open(path, "rb") as file:
            return file.read()


def test_faults_are_scripted_and_must_fire(tmp_path):
    with Faulty(local(tmp_path / "store")) as store:
        store.fail("put", Temporary("the share is gone"), key="b")
        store.fail("open", OSError(5, "Input/output error"), nth=2)
        answers = store.put([Upload(key, Bytes(b"x")) for key in "abc"], prove=Prove(), control=Control())
        assert [getattr(answer, "code", "done") for answer in answers] == ["done", "SF-323", "done"]
        store.open("a").close()
        with pytest.raises(OSError, match="Input/output"):
            store.open("a")
    with pytest.raises(AssertionError, match="never failed: delete"), Faulty(local(tmp_path / "store")) as store:
        store.fail("delete", OSError(5, "Input/output error"))


def test_importing_testing_needs_neither_pytest_nor_hypothesis():
    code = (
        "import sys, scopeferry.testing, scopeferry.testing.faulty, scopeferry.testing.kinds; "
        "import scopeferry.testing.trees, scopeferry.testing.steps; "
        "assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_importable():
    import scopeferry.testing

    for name in scopeferry.testing.__all__:
        assert getattr(scopeferry.testing, name).__name__ == name
