"""A writer in a process of its own, which does what it is told, as slowly as wanted, and can be killed.

The store is written by a real library (`WRITERS`), by another interpreter where that library needs one. Orders and
what they are made of stand in ``testing.orders``.

>>> import os, tempfile
>>> from scopeferry.testing.orders import LAYOUTS, PATTERNS
>>> with tempfile.TemporaryDirectory() as root, SlowWriter(root, "rename") as writer:
...     _ = writer.do(*PATTERNS["full"]("0", LAYOUTS["v2-flat"]))
...     writer.finish("complete")
...     len(os.listdir(f"{root}/0")), os.path.exists(f"{root}/complete")
(9, True)
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from scopeferry.testing import environments, orders
from scopeferry.testing.orders import Layout, Order

SERVE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "writers", "serve.py")
PATIENCE_S = 120.0


class WriterFailed(Exception):
    """The writer answered that an order failed, or has died without being asked to."""


@dataclass(frozen=True, slots=True)
class Writer:
    """A way of writing: module and settings below ``writers/``, the environment (empty: this one), what it can do."""

    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""
    formats: tuple[int, ...] = (2, 3)
    streams: bool = False  # takes frames in order, and nothing else
    lacks: tuple[str, ...] = ()  # names of layouts or patterns

    def can(self, layout: str, pattern: str = "full") -> bool:
        """Can it write this layout in this pattern? A pattern must make sense for the layout, too."""
        found = orders.LAYOUTS[layout]
        if layout in self.lacks or pattern in self.lacks or found.zarr_format not in self.formats:
            return False
        if self.module == "plain" and found.shards and pattern == "shots":
            return False
        if not found.shape and pattern not in {"full", "late attributes", "late arrays"}:
            return False
        return not self.streams or self._streams(found, pattern)

    def _streams(self, found: Layout, pattern: str) -> bool:
        return found in {orders.LAYOUTS["v3"], orders.SHARDS} and pattern in orders.STREAMING


UNCOMPRESSED = ("v2-zlib", "v3-zstd", "v3-shards-of-shards")
USUAL_SHARDS = ("v3-shards-unchecked", "v3-shards-of-shards")
WRITERS = {
    "tensorstore": Writer("with_tensorstore"),
    "tensorstore-lockfile": Writer("with_tensorstore", {"lock": "lockfile"}),
    "tensorstore-none": Writer("with_tensorstore", {"lock": "none"}),
    "zarr": Writer("with_zarr", lacks=USUAL_SHARDS),
    "zarr-3.4": Writer("with_zarr", environment="zarr-3.4", lacks=USUAL_SHARDS),
    "zarr-3.0.8": Writer("with_zarr", environment="zarr-3.0.8", lacks=USUAL_SHARDS),
    "zarr-2.18": Writer("with_zarr", environment="zarr-2.18", formats=(2,)),
    "zarrs": Writer("with_zarr", {"pipeline": "zarrs.ZarrsCodecPipeline"}, "zarrs", lacks=USUAL_SHARDS),
    "acquire-zarr": Writer("with_acquire_zarr", environment="acquire-zarr", formats=(3,), streams=True),
    "ome-writers": Writer("with_ome_writers", environment="ome-writers", formats=(3,), streams=True),
    "ome-writers-tensorstore": Writer(
        "with_ome_writers", {"backend": "tensorstore"}, "ome-writers", formats=(3,), streams=True
    ),
    "rename": Writer("plain", {"how": "rename"}, lacks=UNCOMPRESSED),
    "in place": Writer("plain", {"how": "in place"}, lacks=UNCOMPRESSED),
    "shots": Writer("plain", {"how": "shots"}, lacks=UNCOMPRESSED),
}
HERE = tuple(name for name, writer in WRITERS.items() if not writer.environment)
ELSEWHERE = tuple(name for name, writer in WRITERS.items() if writer.environment)


class SlowWriter:
    """A writer that runs: a context; what still runs on leaving is closed, or killed if the block raised.

    Parameters
    ----------
    root
        Folder of the store; it need not exist.
    name
        One of `WRITERS`.
    before
        What is put before the command: ``("strace", "-f", ...)``.
    **settings
        Laid over those of the writer; see its module.

    Raises
    ------
    Unavailable
        Its environment cannot be made here.
    """

    def __init__(
        self, root: str | os.PathLike[str], name: str, *, before: tuple[str, ...] = (), **settings: Any
    ) -> None:
        writer = WRITERS[name]
        self.root = os.path.abspath(root)
        python = environments.python_of(writer.environment) if writer.environment else sys.executable
        words = [*before, python, "-I", SERVE, writer.module, self.root, json.dumps({**writer.settings, **settings})]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by kill)
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="answers of a writer")
        self._reader.start()
        self._owed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None and self.alive:
                self.close()
        finally:
            self.kill()

    @property
    def pid(self) -> int:
        """Process id, for ``--writer-pid`` (of what stands before the command, if anything does)."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Does it still run?"""
        return self._process.poll() is None

    def do(self, *wanted: Order) -> list[Any]:
        """Have these orders carried out, and wait for it; their answers. Raises WriterFailed.

        After an order that is ``abort`` it waits for the death; nothing is answered then.
        """
        self.wait()
        for order in wanted:
            self.start(order)
        return self.wait()

    def start(self, order: Order) -> None:
        """Have an order carried out as soon as those before it are, without waiting."""
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            raise WriterFailed("it was killed")
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WriterFailed(f"it does not run any more: {self._said()}") from error
        if order["do"] == "abort":
            self.wait()
            self._process.wait(PATIENCE_S)
        else:
            self._owed += 1

    def wait(self, timeout_s: float = PATIENCE_S) -> list[Any]:
        """Answers of all orders that were started and not waited for. Raises WriterFailed."""
        found = []
        while self._owed:
            try:
                line = self._answers.get(timeout=timeout_s)
            except queue.Empty:
                raise WriterFailed(f"no answer within {timeout_s:g} s: {self._said()}") from None
            self._owed = self._owed - 1 if line else 0
            if not line:
                raise WriterFailed(f"it died: {self._said()}")
            answer = json.loads(line)
            if "failed" in answer:
                raise WriterFailed(f"{answer['kind']}: {answer['failed']}")
            found.append(answer["done"])
        return found

    def finish(self, marker: str = "") -> None:
        """Close the store, end the process, then write the marker, which is an empty file; none if it is empty."""
        self.close()
        if marker:
            path = os.path.join(self.root, *marker.split("/"))
            with open(path, "xb"):
                pass

    def close(self) -> None:
        """Close the store and end the process. Raises WriterFailed."""
        self.start({"do": "close"})
        self.wait()
        self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        """End it by SIGKILL, wherever it is; harmless when it has ended."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()  # where another command stands before it, this is what ends the writer
        except BrokenPipeError:
            pass
        self._reader.join()
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(b"")

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "backslashreplace")[-2000:].strip() or "no word why"
