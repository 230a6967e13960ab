"""A store that fails on purpose: the nth call of a method goes wrong, and a fault that never happened is an error.

>>> from scopeferry.stores.local import LocalStore
>>> from scopeferry.kernel.publish import disk
>>> with Faulty(LocalStore("/", disk("/"))) as store:
...     store.fail("entry", PermissionError("no"), nth=2)
...     print(store.entry("not there"))
...     try:
...         store.entry("not there")
...     except PermissionError as error:
...         print(error)
None
no
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from scopeferry.errors import ScopeferryError
from scopeferry.kernel.publish import Mark
from scopeferry.kernel.task import Control, Failure
from scopeferry.stores.store import Entry, Prove, Reader, Store, Upload


@dataclass(slots=True)
class _Fault:
    method: str
    error: BaseException
    key: str | None
    nth: int
    times: int
    seen: int = 0
    fired: int = 0


class Faulty:
    """A Store around a Store. ``put`` answers a scripted fault as a Failure of that item, as every store must."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._faults: list[_Fault] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        missed = [fault.method for fault in self._faults if not fault.fired]
        if kind is None and missed:
            raise AssertionError(f"never failed: {', '.join(missed)}")

    def fail(self, method: str, error: BaseException, *, key: str | None = None, nth: int = 1, times: int = 1) -> None:
        """Let the nth call of a method (for this key, if one is named) fail; each item is a call of ``put``."""
        self._faults.append(_Fault(method, error, key, nth, times))

    def _due(self, method: str, key: str) -> BaseException | None:
        for fault in self._faults:
            if fault.method != method or fault.key not in {None, key}:
                continue
            fault.seen += 1
            if fault.seen >= fault.nth and fault.fired < fault.times:
                fault.fired += 1
                return fault.error
        return None

    def _meet(self, method: str, key: str) -> None:
        error = self._due(method, key)
        if error is not None:
            raise error

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """As the inner store, but for the items that are to fail."""
        answers: dict[int, Entry | Failure] = {}
        left = []
        for index, upload in enumerate(uploads):
            error = self._due("put", upload.key)
            if isinstance(error, ScopeferryError):
                answers[index] = Failure.of(upload.key, error)
            elif error is not None:
                raise error
            else:
                left.append(index)
        found = self._store.put([uploads[index] for index in left], prove=prove, control=control) if left else []
        answers.update(zip(left, found, strict=True))
        return [answers[index] for index in range(len(uploads))]

    def open(self, key: str) -> Reader:
        """As the inner store."""
        self._meet("open", key)
        return self._store.open(key)

    def entry(self, key: str) -> Mark | None:
        """As the inner store."""
        self._meet("entry", key)
        return self._store.entry(key)

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Mark]]:
        """As the inner store."""
        self._meet("entries", prefix)
        return self._store.entries(prefix)

    def delete(self, key: str) -> None:
        """As the inner store."""
        self._meet("delete", key)
        self._store.delete(key)
