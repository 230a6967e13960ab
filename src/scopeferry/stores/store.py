"""What a store promises, and the values that pass between a source and a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from scopeferry import config
from scopeferry.errors import ItemError
from scopeferry.kernel.digest import in_sample
from scopeferry.kernel.publish import Mark
from scopeferry.kernel.task import Control, Failure

#: What is kept of a file beside its bytes, unless taken away.
KEEP_DEFAULT = frozenset(config.KEEP_DEFAULT)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is kept of a file beside its bytes; None (or empty): not kept.

    ``mode`` holds the permission bits, ``owner`` is (user id, group id). ``dropped`` names extended attributes that the
    copy is not to have any more; others that it has beyond ``xattrs`` stay: file servers and people keep theirs there.
    """

    mode: int | None = None
    mtime_ns: int | None = None
    owner: tuple[int, int] | None = None
    xattrs: dict[str, bytes] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()

    def under(self, kept: Attributes | None) -> Attributes:
        """These, but for what `kept` has."""
        if kept is None:
            return self
        return Attributes(
            self.mode if kept.mode is None else kept.mode,
            self.mtime_ns if kept.mtime_ns is None else kept.mtime_ns,
            kept.owner or self.owner,
            kept.xattrs or self.xattrs,
        )


class Reader(Protocol):
    """One open source file, read once from its first to its last byte. A context manager."""

    size: int

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    @property
    def sparse(self) -> bool:
        """Has it holes?"""

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) in bytes of what holds data, in order; all between is zeros."""

    def read_into(self, buffer: Any, offset: int) -> int:
        """Read at an offset; 0 at the end. Raises ItemError (SF-204)."""

    def attributes(self) -> Attributes:
        """What is to be kept beside the bytes."""

    def check(self) -> Mark:
        """The source's mark, if it is still the file that was opened, and unchanged; raises SourceChanged."""


@dataclass(frozen=True, slots=True)
class Prove:
    """How much of what is written is read back before it gets its name."""

    percent: float = 100.0

    def wants(self, key: bytes) -> bool:
        """Is this item to be read back?"""
        return self.percent >= 100 or (self.percent > 0 and in_sample(key, self.percent))


@dataclass(slots=True)
class Upload:
    """Something to be put under ``key``: a file that ``open`` opens, or a symbolic link with a ``target``.

    ``attributes`` are those of a link; of a file those that it gets in place of its source's.
    ``expected`` is the mark of what may be replaced, None if nothing may stand there. ``set_aside`` is a folder below
    the record folder that first receives what is replaced. ``named`` gives the final name from the working digest,
    where it depends on that. ``settled`` looks at the source once
    more before the name is given, and raises if it moved. ``key`` is a POSIX path relative to the store, as the system
    decodes names.
    """

    key: str
    open: Callable[[], Reader] | None = None
    expected: Mark | None = None
    target: str | None = None
    attributes: Attributes | None = None
    set_aside: str | None = None
    named: Callable[[bytes], str] | None = None
    settled: Callable[[Mark], None] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """Something published: its mark after the rename, the digests of its bytes, the mark of its source, and how it was
    proved. ``aside`` is where, below the record folder, what stood there was set aside.
    """

    key: str
    mark: Mark
    digests: dict[str, bytes] = field(default_factory=dict)
    source: Mark | None = None
    read_back: str = "no"
    attempts: int = 1
    lost: tuple[str, ...] = ()
    attributes: Attributes | None = None
    aside: str = ""


class Store(Protocol):
    """Somewhere to publish things. All names are atomic: readers never see a part."""

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """Publish each upload whole and proved, or not at all; one answer for each, in order. Safe to repeat."""

    def open(self, key: str) -> Reader:
        """What is published under `key`, from storage and not from the cache. Raises FileNotFoundError."""

    def entry(self, key: str) -> Mark | None:
        """The mark of what is published under `key`, or None."""

    def entries(self, prefix: str = "") -> Iterator[tuple[str, Mark]]:
        """All that is published below `prefix`, in no order; temporary names are not."""

    def delete(self, key: str) -> None:
        """Remove `key`; nothing happens if it is not there."""


class ProofError(ItemError):
    """What was read back is not what was written."""

    default = "SF-206"


class FlushError(ItemError):
    """A flush failed: the kernel has marked the pages clean, so the next flush would succeed. The whole batch is
    written again.
    """

    default = "SF-211"


class FullError(ItemError):
    """No room for this item, now."""

    default = "SF-313"


class GoneError(ItemError):
    """The destination does not answer, now."""

    default = "SF-323"


class SourceGoneError(ItemError):
    """The source does not answer, now."""

    default = "SF-322"


class MountError(ItemError):
    """A server that answers gave an error for this item: it may just have been away."""

    default = "SF-211"
