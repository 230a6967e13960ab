"""A store and the `live` command that copies it, for accidents: each write, each signal, each look is one call.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     store = Store(folder + "/a.zarr", chunks=3)
...     store.put(0, 1)
...     store.finish()
...     code = Followed(store, folder + "/copy.zarr", home=folder).end()["exit_code"]
>>> code
0
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scopeferry.testing.trees import differences, parts, random_bytes

PATIENCE_S = 60.0
COMMAND = (sys.executable, "-m", "scopeferry")


class Store:
    """A Zarr array of bytes, whose chunks are put by renaming, as tensorstore does."""

    def __init__(
        self, root: str | os.PathLike[str], *, chunks: int = 8, size: int = 4096, nested: bool = False
    ) -> None:
        self.root, self.chunks, self.size = Path(root), chunks, size
        self.separator = "/" if nested else "."
        self._seed = 0
        self.root.mkdir(parents=True, exist_ok=True)
        metadata = {
            "zarr_format": 2, "shape": [chunks, size], "chunks": [1, size], "dtype": "|u1", "compressor": None,
            "fill_value": 0, "order": "C", "filters": None, "dimension_separator": self.separator,
        }  # fmt: skip
        self.write(".zarray", json.dumps(metadata).encode())

    def path(self, number: int) -> Path:
        """Of a chunk."""
        return self.root / f"{number}{self.separator}0"

    def put(self, *numbers: int) -> None:
        """Write these chunks, each with bytes it never had."""
        for number in numbers:
            self._seed += 1
            self.write(f"{number}{self.separator}0", random_bytes(self._seed, self.size))

    def write(self, name: str, data: bytes) -> None:
        """Write any file, by renaming."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        other = path.with_name(f"{path.name}.__lock")
        other.write_bytes(data)
        other.replace(path)

    def finish(self) -> None:
        """Write the marker."""
        (self.root / "complete").touch()


class Followed:
    """``scopeferry live`` as a process of its own. ``before`` is put before the command; ``home`` takes its state.

    Without a destination its only argument is `source`.
    """

    def __init__(
        self,
        store: Store,
        destination: str | os.PathLike[str] | None,
        *options: object,
        home: str | os.PathLike[str] | None = None,
        before: Sequence[str] = (),
        command: Sequence[str] = (*COMMAND, "live"),
        source: str | os.PathLike[str] | None = None,
        **how: Any,
    ) -> None:
        self.store, self.destination = store, Path(destination or source or store.root)
        self.records = self.destination.with_name(self.destination.name + ".scopeferry")
        ends = [source or store.root] if destination is None else [source or store.root, destination]
        words = [*before, *command, *map(str, ends), "--json", *map(str, options)]
        env = os.environ | ({"XDG_STATE_HOME": os.fspath(home)} if home is not None else {})
        env["PYTHONFAULTHANDLER"] = "1"
        self.said = ""  # on stderr, when it has ended
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, **how
        )

    def wait(self, *names: str, until: Callable[[], bool] | None = None) -> None:
        """Until these are there under their final names, or until it is so; raises if it ends or hangs before."""
        so = until or (lambda: all((self.destination / name).exists() for name in names))
        self._wait(so, "it did not come to it")

    def _wait(self, so: Callable[[], bool], hangs: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not so():
            if self.process.poll() is not None:
                raise AssertionError(f"it has ended: {self.process.communicate()}")
            if time.monotonic() > end:
                self.process.send_signal(signal.SIGABRT)  # says where each thread stands
                raise AssertionError(f"{hangs}: {self.process.communicate()}")
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """A signal."""
        self.process.send_signal(number)

    def end(self) -> dict[str, Any]:
        """The envelope, when it has ended."""
        try:
            out, self.said = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            raise AssertionError(f"it hangs: {self.process.communicate()}") from None
        if "Traceback" in self.said or not out.strip():
            raise AssertionError(f"{self.process.returncode}: {self.said}")
        found: dict[str, Any] = json.loads(out)
        if found["exit_code"] != self.process.returncode:
            raise AssertionError(f"says {found['exit_code']}, ends with {self.process.returncode}")
        return found

    def ends(self, code: int = 0) -> dict[str, Any]:
        """The envelope, after it has ended with this code; with 0 the copy is whole."""
        found = self.end()
        if found["exit_code"] != code:
            raise AssertionError(f"{found['exit_code']} instead of {code}: {found['problems']}")
        if code == 0:
            self.check_whole()
        self.check_clean()
        return found

    def check_clean(self) -> None:
        """Nothing temporary, at the copy and its records."""
        left = [*parts(self.destination)] if self.destination.is_dir() else []
        left += [os.fsencode(path) for path in self.records.glob("*.part")]
        if left:
            raise AssertionError(f"left: {left}")

    def check_whole(self) -> None:
        """Equal, with a receipt that says so."""
        told = list(differences(self.store.root, self.destination))
        if told:
            raise AssertionError(told)
        if not (self.records / "receipt.json").exists():
            raise AssertionError("no receipt")

    def kill(self) -> None:
        """SIGKILL, and take it away."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def visible(self) -> Iterator[Path]:
        """Files under final names at the copy."""
        for path in self.destination.rglob("*"):
            if path.is_file() and not path.name.startswith(".sf-"):
                yield path


def codes(found: dict[str, Any]) -> set[str]:
    """Of the problems in an envelope."""
    return {problem["code"] for problem in found["problems"]}


def named(found: dict[str, Any]) -> set[tuple[str, str]]:
    """(code, path) of the problems in an envelope."""
    return {(problem["code"], problem["path"]) for problem in found["problems"]}
