"""Carry out orders: one JSON object a line on stdin, one answer a line on stdout, with the module of argv[1].

Its `Writer` has a method for each order it can carry out: ``group array put resize attributes close``. What every store
has (plain files, pauses, sudden death) is done here. An order that names no `seed`, `fill` or `data` has no pixels.
When stdin ends without ``close`` whoever gave the orders is gone, and so is this process.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Order = dict[str, Any]
_pool = b""


def pixels(seed: int, size_bytes: int) -> bytes:
    """Random bytes, the same for the same seed and size, made at the speed of a copy.

    >>> pixels(1, 64) == pixels(1, 64) != pixels(2, 64)
    True
    >>> len(pixels(70_000, 0))
    0
    """
    global _pool  # noqa: PLW0603  (random bytes take 3 ms per MiB, a slice takes nothing)
    if size_bytes == 0:
        return b""
    if len(_pool) < size_bytes:
        _pool = random.Random(0).randbytes(max(1 << 20, 1 << (size_bytes - 1).bit_length()))
    start = (seed + 1) * 1_000_003 % len(_pool)
    return (_pool[start : start + size_bytes] + _pool)[:size_bytes]


def item_bytes(dtype: str) -> int:
    """Bytes of one element of ``uint16``, ``float32`` and so on."""
    return int("".join(filter(str.isdigit, dtype))) // 8


def count(shape: Sequence[int]) -> int:
    """Elements in an array of this shape."""
    total = 1
    for length in shape:
        total *= length
    return total


def shots(order: Order) -> Iterator[Order]:
    """The puts that fill the region of an order in `shots` parts, along its first axis that is long enough."""
    start, shape, parts = list(order["start"]), list(order["shape"]), order["shots"]
    axis = next((axis for axis, length in enumerate(shape) if length >= parts), 0)
    edges = [shape[axis] * part // parts for part in range(parts + 1)]
    for part, (begin, end) in enumerate(itertools.pairwise(edges)):
        at, size = list(start), list(shape)
        at[axis], size[axis] = start[axis] + begin, end - begin
        yield {**order, "do": "put", "start": at, "shape": size, "seed": order.get("seed", 0) + part}


class Service:
    """One writer and what it knows of its arrays."""

    def __init__(self, writer: Any, root: str) -> None:
        self.writer, self.root = writer, root
        self.item: dict[str, int] = {}

    def carry_out(self, order: Order) -> Any:
        """Do one order; raises whatever the library raises, NotImplementedError if it cannot."""
        what = order["do"]
        own: Callable[[Order], Any] | None = getattr(self, f"_{what}", None)
        if own is not None:
            return own(order)
        method = getattr(self.writer, what, None)
        if method is None:
            raise NotImplementedError(f"this writer has no {what!r}")
        return method(**{name: value for name, value in order.items() if name != "do"})

    def _array(self, order: Order) -> None:
        spec = {name: value for name, value in order.items() if name not in {"do", "path"}}
        self.item[order["path"]] = item_bytes(spec["dtype"])
        self.writer.array(order["path"], spec)

    def _put(self, order: Order) -> None:
        size = count(order["shape"]) * self.item[order["path"]]
        if order.get("fill"):
            data = None
        elif "data" in order:
            data = base64.b64decode(order["data"])
        else:
            data = pixels(order.get("seed", 0), size)
        self.writer.put(order["path"], order["start"], order["shape"], data)

    def _shots(self, order: Order) -> None:
        for number, put in enumerate(shots(order)):
            if number:
                time.sleep(order.get("pause_s", 0))
            self._put(put)

    def _file(self, order: Order) -> None:
        """Any file below the root, in place, or under another name first."""
        path = os.path.join(self.root, *order["path"].split("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        data = order["text"].encode() if "text" in order else pixels(order.get("seed", 0), order.get("size_bytes", 0))
        target = path if order.get("how", "rename") == "in place" else f"{path}.tmp"
        parts = order.get("parts", 1)
        with open(target, "wb", buffering=0) as file:
            for part in range(parts):
                if part:
                    time.sleep(order.get("pause_s", 0))
                file.write(data[len(data) * part // parts : len(data) * (part + 1) // parts])
        if target != path:
            os.replace(target, path)

    def _folder(self, order: Order) -> None:
        os.makedirs(os.path.join(self.root, *order["path"].split("/")), exist_ok=True)

    def _remove(self, order: Order) -> None:
        os.remove(os.path.join(self.root, *order["path"].split("/")))

    def _pause(self, order: Order) -> None:
        time.sleep(order["seconds"])

    def _abort(self, _order: Order) -> None:
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def _series(self, order: Order) -> list[list[float]]:
        """Orders in turn, one each `every_s` (0: at full speed): how late each began and how long it took, in s."""
        began, every, times = time.monotonic(), order.get("every_s", 0.0), []
        for number, one in enumerate(order["orders"]):
            due = began + number * every
            time.sleep(max(0.0, due - time.monotonic()) if every else 0.0)
            late_from = time.monotonic()
            self.carry_out(one)
            times.append([late_from - due if every else 0.0, time.monotonic() - late_from])
        return times


def load(module: str) -> Any:
    """A module that lies beside this one."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{module}.py")
    spec = importlib.util.spec_from_file_location(f"_writer_{module}", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _read(orders: queue.SimpleQueue[Order]) -> None:
    """Take orders in while others are carried out."""
    closed = False
    try:
        for line in sys.stdin:
            order = json.loads(line)  # half a line, if who gave the orders was killed in the middle of one
            orders.put(order)
            closed = order["do"] == "close"
    finally:
        if not closed:
            os._exit(1)


def main(module: str, root: str, settings: str) -> None:
    """Answer every order, until ``close``."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    service = Service(load(module).Writer(root, json.loads(settings)), root)
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    order: Order = {"do": ""}
    while order["do"] != "close":
        order = orders.get()
        answer: Order
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer = {"done": service.carry_out(order), "at": time.time()}
        except Exception as error:  # noqa: BLE001  (whatever a library raises is the answer)
            answer = {"failed": str(error) or repr(error), "kind": type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
