"""Writers that run: one per test and folder, skipped where its environment cannot be made."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import zarr

from scopeferry.testing.environments import Unavailable
from scopeferry.testing.slow_writer import SlowWriter

CALL = re.compile(r"^\d+ +(\w+)\((.*)$")
NAME = re.compile(r'"((?:[^"\\]|\\.)*)"|<(/[^>]*)>')
TRACED = "openat,open,creat,rename,renameat,renameat2,link,unlink,fsync,fdatasync,write,pwrite64,writev,ftruncate,close"


@pytest.fixture(scope="session", autouse=True)
def _loop_of_zarr():
    """The event loop that zarr keeps for the life of a process is no file that a test left open."""
    zarr.zeros(1, store={})


@pytest.fixture
def write(tmp_path):
    """A context that yields a running writer: ``with write("zarr") as writer``; its store is `tmp_path/a.ome.zarr`."""

    @contextmanager
    def run(name, root=tmp_path / "a.ome.zarr", **how):
        try:
            writer = SlowWriter(root, name, **how)
        except Unavailable as error:
            pytest.skip(str(error))
        with writer:
            yield writer

    return run


@dataclass(frozen=True)
class Call:
    """A system call: its name, the paths below the store it names, and the text of its arguments."""

    what: str
    paths: tuple[str, ...]
    text: str

    @property
    def makes(self) -> str:
        """The name it opens to write, if that is what it does."""
        writes = self.what in {"openat", "open", "creat"} and re.search("O_WRONLY|O_RDWR|creat", self.text)
        return self.paths[-1] if writes and self.paths else ""


@pytest.fixture
def traced(write, tmp_path):
    """``traced(name, orders)``: the calls of a writer that change its store or flush it, in order."""

    def run(name, orders):
        if not shutil.which("strace"):
            pytest.skip("needs strace: apt install strace")
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        log = place / "trace"
        with write(
            name,
            root=place / "a.ome.zarr",
            before=("strace", "-f", "-y", "-s", "256", "-o", str(log), "-e", f"trace={TRACED}"),
        ) as writer:
            writer.do(*orders)
            writer.close()
        return list(_calls(log, writer.root))

    return run


def _calls(log: Path, root: str):
    for line in log.read_text(errors="backslashreplace").splitlines():
        found = CALL.match(line)
        if found is None or root not in line or "ENOENT" in line:
            continue
        what, text = found.groups()
        named = [one or other for one, other in NAME.findall(text.split(" = ")[0])]
        paths = tuple(name.removeprefix(root).strip("/") for name in named if name.startswith(root))
        yield Call(what, paths, text)
