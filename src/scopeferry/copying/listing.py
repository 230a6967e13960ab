"""What a copy must hold, on disk: one row a file, link and folder, so that memory stays flat whatever the number of
files.

It is made from the records (what was kept of each entry), from the manifests (which digest), and from a walk of the
source (what nobody has recorded). Rows are keyed by the path at the destination, folder by folder; what a check found
is written back into them. The file behind it is SQLite's own temporary one: nothing of it outlives the process.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from scopeferry.copying import manifest, record
from scopeferry.copying.record import FOLDER, Standing, path_json
from scopeferry.errors import UsageError
from scopeferry.kernel import journal as states
from scopeferry.kernel.digest import ALGORITHMS
from scopeferry.kernel.publish import Mark
from scopeferry.logs import printable

if TYPE_CHECKING:
    from typing import Self

PAGE = 1000

# What is to be done with a row, and what came of it.
LEFT_OUT, CHECK, GOOD, BAD, HEALED = 0, 1, 2, 3, 4

_SCHEMA = """
CREATE TABLE items (
  head BLOB NOT NULL, name BLOB NOT NULL, kind INTEGER NOT NULL, size INTEGER, mtime_ns INTEGER, mode INTEGER,
  target BLOB, xattrs TEXT, algorithm TEXT, digest BLOB, more TEXT, source BLOB, at REAL NOT NULL,
  state INTEGER NOT NULL, freed INTEGER NOT NULL, recorded INTEGER NOT NULL, source_mtime_ns INTEGER, code TEXT,
  inode INTEGER, ctime_ns INTEGER, leader BLOB, PRIMARY KEY (head, name)) WITHOUT ROWID;
CREATE INDEX mapped ON items (source) WHERE source IS NOT NULL;
"""
_COLUMNS = (
    "head, name, kind, size, mtime_ns, mode, target, xattrs, algorithm, digest, more, source, at, state, freed, "
    "recorded, source_mtime_ns, code, inode, ctime_ns, leader"
)
_PUT = f"INSERT OR REPLACE INTO items ({_COLUMNS}) VALUES ({', '.join('?' * 21)})"


class Item(NamedTuple):
    """What is expected of one entry of a copy; None: nobody knows.

    ``head`` is its folder (``b""`` or ``b"a/"``); ``mtime_ns``, ``mode``, ``target`` and ``xattrs`` (JSON) are what was
    kept; ``more`` holds further digests (JSON, hex); ``source`` is its path at the source where that is another one;
    ``at`` is when it was proved last (seconds since the epoch); ``inode`` and ``ctime_ns`` are what a check saw;
    ``leader`` is the path at the source of the file it is a hard link of.
    """

    head: bytes
    name: bytes
    kind: int
    size: int | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    target: bytes | None = None
    xattrs: str | None = None
    algorithm: str | None = None
    digest: bytes | None = None
    more: str | None = None
    source: bytes | None = None
    at: float = 0.0
    state: int = CHECK
    freed: int = 0
    recorded: int = 0
    source_mtime_ns: int | None = None
    code: str | None = None
    inode: int | None = None
    ctime_ns: int | None = None
    leader: bytes | None = None

    @property
    def path(self) -> bytes:
        """Its path at the destination."""
        return self.head + self.name

    @property
    def origin(self) -> bytes:
        """Its path at the source."""
        return self.path if self.source is None else self.source

    @property
    def link(self) -> str | None:
        """Where a symbolic link leads, as the system decodes it."""
        return None if self.target is None else os.fsdecode(self.target)

    @property
    def digests(self) -> dict[str, bytes]:
        """All digests that are known, the working one first."""
        found = {} if self.digest is None or self.algorithm is None else {self.algorithm: self.digest}
        if self.more:
            found |= {name: bytes.fromhex(value) for name, value in json.loads(self.more).items()}
        return found

    def line(self, action: str, **more: Any) -> str:
        """What a record says of it: all that is known, so that nothing is forgotten by a later line."""
        kind = {FOLDER: "folder", states.SYMLINK: "link", states.HARDLINK: "hardlink"}.get(self.kind, "file")
        facts: dict[str, Any] = {
            "kind": kind, "size": self.size, "mtime_ns": self.source_mtime_ns, "mode": self.mode, "target": self.link,
            "xattrs": json.loads(self.xattrs) if self.xattrs else None, "action": action,
            "digest": {name: digest.hex() for name, digest in self.digests.items()} or None,
            "leader": None if self.leader is None else os.fsdecode(self.leader),
            "lost": ["times"] if self.mtime_ns is None and self.source_mtime_ns is not None else None, **more,
        }  # fmt: skip
        if self.source is not None:
            facts |= {"stored_b64": base64.b64encode(self.path).decode()}
        rest = json.dumps({key: value for key, value in facts.items() if value is not None})
        return f"{{{path_json(os.fsdecode(self.origin))}, {rest[1:]}"


def split(path: bytes) -> tuple[bytes, bytes]:
    """(folder with its slash, name) of a path."""
    at = path.rfind(b"/") + 1
    return path[:at], path[at:]


class Listing:
    """The rows. Use it from one thread; close it when done."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.executescript(_SCHEMA)
        self._moves = False  # does something stand under another name than its own?

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything; twice is harmless."""
        with suppress(sqlite3.Error):
            self._db.close()

    # -- filling -------------------------------------------------------------------------------------------------------

    def add_records(self, folder: str) -> int:
        """Fold all generations of a record folder in; the number of their lines. Raises UsageError (SF-110)."""
        batch: list[Item] = []
        count = 0
        for header, entry in record.replay(folder):
            count += 1
            plain = entry.action in {"copied", "adopted", "replaced"}
            if plain:
                batch.append(_item(entry))
            if len(batch) >= PAGE or (batch and not plain):
                self._put_recorded(batch)
                batch = []
            if entry.action in record.STANDS and not plain:
                self._merge(_item(entry))
            elif entry.action == "freed":
                self._freed(entry, here=record.is_freed_here(header, entry))
        self._put_recorded(batch)
        return count

    def _put_recorded(self, items: Sequence[Item]) -> None:
        """Put what a record says stands; an item stands at one place, so another place where it stood is nobody's."""
        self._moves = self._moves or any(item.source is not None for item in items)
        if not self._moves:
            self._put(items)
            return
        for item in items:
            origin = item.origin
            self._db.execute("DELETE FROM items WHERE source=? AND head || name <> ?", (origin, item.path))
            if item.source is not None:
                self._db.execute("DELETE FROM items WHERE head=? AND name=? AND source IS NULL", split(origin))
            self._put([item])

    def _merge(self, item: Item) -> None:
        """A line that says that what stood there stands there still: what it is silent about stays."""
        was = self.get(item.path)
        if was is not None and (item.digest is None or was.digests.get(item.algorithm or "") == item.digest):
            both = {**was.digests, **item.digests}
            algorithm = was.algorithm or item.algorithm
            item = item._replace(
                mtime_ns=was.mtime_ns if item.mtime_ns is None else item.mtime_ns,
                mode=was.mode if item.mode is None else item.mode,
                target=was.target if item.target is None else item.target,
                xattrs=was.xattrs if item.xattrs is None else item.xattrs,
                leader=was.leader if item.leader is None else item.leader,
                algorithm=algorithm, digest=both.pop(algorithm, None) if algorithm else None, more=_json(both),
                at=max(was.at, item.at),
            )  # fmt: skip
        self._put_recorded([item])

    def _freed(self, entry: Standing, *, here: bool) -> None:
        if here:
            self._db.execute("DELETE FROM items WHERE head=? AND name=?", split(entry.stored))
        else:
            self._db.execute("UPDATE items SET freed=1 WHERE head=? AND name=?", split(entry.stored))

    def add_manifest(self, lines: Iterable[tuple[str, bytes, bytes]]) -> list[bytes]:
        """Merge a manifest in; the first 100 paths whose digest in it is not that of the record, which wins."""
        differing: list[bytes] = []
        for algorithm, path, digest in lines:
            was = self.get(path)
            if was is None:
                self._put([Item(*split(path), states.FILE, algorithm=algorithm, digest=digest)])
            elif was.digest is None:
                self._put([was._replace(algorithm=algorithm, digest=digest)])
            elif (known := was.digests.get(algorithm)) is not None:
                if known != digest and len(differing) < 100:
                    differing.append(path)
            elif not was.recorded:
                self._put([was._replace(more=_json({**was.digests, algorithm: digest}, without=was.algorithm))])
        return differing

    def add_source(self, items: Iterable[Item]) -> None:
        """Add what a walk of the source found, where nothing is known of that path."""
        self._db.executemany(_PUT.replace("OR REPLACE", "OR IGNORE"), items)

    def _put(self, items: Iterable[Item]) -> None:
        self._db.executemany(_PUT, items)

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, path: bytes) -> Item | None:
        """The row of a path at the destination."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE head=? AND name=?", split(path)).fetchone()
        return None if row is None else Item._make(row)

    def of_source(self, path: bytes) -> Item | None:
        """The row of a path at the source."""
        row = self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE source=?", (path,)).fetchone()
        if row is not None:
            return Item._make(row)
        found = self.get(path)
        return found if found is not None and found.source is None else None

    def items(self, *wanted: int, kinds: tuple[int, ...] = ()) -> Iterator[Item]:
        """The rows in these states (or all), folder by folder; rows may be changed meanwhile."""
        where = f"state IN ({','.join(map(str, wanted))}) AND" if wanted else ""
        if kinds:
            where += f" kind IN ({','.join(map(str, kinds))}) AND"
        sql = f"SELECT {_COLUMNS} FROM items WHERE {where} (head, name) > (?, ?) ORDER BY head, name LIMIT {PAGE}"
        first = self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE {where} head=x'' AND name=x''").fetchone()
        if first is not None:
            yield Item._make(first)
        at = (b"", b"")
        while True:
            page = self._db.execute(sql, at).fetchall()
            yield from map(Item._make, page)
            if len(page) < PAGE:
                return
            at = (page[-1][0], page[-1][1])

    def totals(self) -> dict[int, tuple[int, int]]:
        """State -> (files and links, their bytes)."""
        sql = "SELECT state, COUNT(*), SUM(COALESCE(size, 0)) FROM items WHERE kind<>? GROUP BY state"
        return {state: (count, size) for state, count, size in self._db.execute(sql, (FOLDER,))}

    def names(self, head: bytes) -> set[bytes]:
        """The names that are expected in one folder."""
        return {name for (name,) in self._db.execute("SELECT name FROM items WHERE head=?", (head,))}

    def count(self, head: bytes) -> int:
        """How many names are expected in one folder."""
        return int(self._db.execute("SELECT COUNT(*) FROM items WHERE head=?", (head,)).fetchone()[0])

    def has(self, head: bytes, name: bytes) -> bool:
        """Is this name expected there?"""
        return self._db.execute("SELECT 1 FROM items WHERE head=? AND name=?", (head, name)).fetchone() is not None

    def algorithms(self) -> list[str]:
        """The algorithms of which some file has a digest."""
        used = {name for (name,) in self._db.execute("SELECT DISTINCT algorithm FROM items WHERE digest IS NOT NULL")}
        for (more,) in self._db.execute("SELECT DISTINCT more FROM items WHERE more IS NOT NULL LIMIT 1000"):
            used |= set(json.loads(more))
        return [name for name in ALGORITHMS if name in used]

    def count_digests(self, algorithm: str) -> int:
        """How many files have a digest by this algorithm."""
        sql = "SELECT COUNT(*) FROM items WHERE digest IS NOT NULL AND (algorithm=? OR more LIKE ?)"
        return int(self._db.execute(sql, (algorithm, f'%"{algorithm}"%')).fetchone()[0])

    def manifest(self, algorithm: str) -> Iterator[tuple[bytes, bytes]]:
        """(path, digest) of each file whose digest by this algorithm is known, sorted by path bytes."""
        sql = f"SELECT {_COLUMNS} FROM items WHERE digest IS NOT NULL ORDER BY CAST(head || name AS BLOB)"
        for row in self._db.execute(sql):
            item = Item._make(row)
            digest = item.digest if item.algorithm == algorithm else item.digests.get(algorithm) if item.more else None
            if digest is not None:
                yield item.path, digest

    def counts(self) -> dict[int, int]:
        """State -> entries of all kinds."""
        return dict(self._db.execute("SELECT state, COUNT(*) FROM items GROUP BY state"))

    # -- what a check found --------------------------------------------------------------------------------------------

    def sample(self, percent: float, proved: Iterable[tuple[bytes, float]] = ()) -> None:
        """Leave out all files but `percent` %, those proved longest ago; links and folders stay.

        `proved`: (path at the source, seconds since the epoch) of proofs that the records do not know.
        """
        mapped = self._db.execute("SELECT 1 FROM items WHERE source IS NOT NULL LIMIT 1").fetchone() is not None
        for path, at in proved:
            found = self.of_source(path) if mapped else None
            where = split(path if found is None else found.path)
            self._db.execute("UPDATE items SET at=MAX(at, ?) WHERE head=? AND name=?", (at, *where))
        files = "kind IN (0, 2)"
        count = self._db.execute(f"SELECT COUNT(*) FROM items WHERE {files}").fetchone()[0]
        wanted = -(-count * percent // 100)
        self._db.execute(f"UPDATE items SET state={LEFT_OUT} WHERE {files}")
        oldest = f"SELECT head, name FROM items WHERE {files} ORDER BY at, head, name LIMIT ?"
        self._db.execute(f"UPDATE items SET state={CHECK} WHERE (head, name) IN ({oldest})", (int(wanted),))

    def settle(self, found: Iterable[tuple[int, str | None, Mark | None, bytes, bytes]]) -> None:
        """Write (state, code, mark, head, name) of checked rows."""
        rows = ((state, code, *_identity(mark), head, name) for state, code, mark, head, name in found)
        self._db.executemany("UPDATE items SET state=?, code=?, inode=?, ctime_ns=? WHERE head=? AND name=?", rows)

    def add_digests(self, item: Item, new: dict[str, bytes]) -> None:
        """Further digests of one row."""
        more = _json({**item.digests, **new}, without=item.algorithm)
        self._db.execute("UPDATE items SET more=? WHERE head=? AND name=?", (more, item.head, item.name))

    def moved(self, inode: int, ctime_ns: int, now_ns: int) -> None:
        """One name of an inode has gone: the others have another time of change now."""
        self._db.execute("CREATE INDEX IF NOT EXISTS inodes ON items (inode)")
        self._db.execute("UPDATE items SET ctime_ns=? WHERE inode=? AND ctime_ns=?", (now_ns, inode, ctime_ns))

    def begin(self) -> None:
        """Begin a transaction: many writes are then one."""
        self._db.execute("BEGIN")

    def commit(self) -> None:
        """End it."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")


def _identity(mark: Mark | None) -> tuple[int | None, int | None]:
    return (None, None) if mark is None else (mark.inode, mark.ctime_ns)


def _json(digests: dict[str, bytes], without: str | None = None) -> str | None:
    found = {name: digest.hex() for name, digest in digests.items() if name != without}
    return json.dumps(found, sort_keys=True) if found else None


def _item(entry: Standing) -> Item:
    head, name = split(entry.stored)
    digests = entry.digests
    algorithm = entry.working if entry.working in digests else next(iter(digests), None)
    return Item(
        head, name, entry.kind, entry.size if entry.kind != FOLDER else None, entry.mtime_ns, entry.mode,
        None if entry.target is None else os.fsencode(entry.target),
        json.dumps(entry.xattrs, sort_keys=True) if entry.xattrs else None, algorithm,
        digests[algorithm] if algorithm else None, _json(digests, algorithm) if len(digests) > 1 else None,
        entry.path if entry.path != entry.stored else None, entry.at if entry.read_back != "no" else 0.0, CHECK, 0, 1,
        entry.source_mtime_ns, None, None, None, entry.leader,
    )  # fmt: skip


class Expected(NamedTuple):
    """What a copy must hold. ``hashes``: algorithm -> SHA-256 of its manifest; ``differing``: where it and the record
    do.
    """

    listing: Listing
    hashes: dict[str, str]
    differing: list[bytes]


def of_copy(records: str, named: dict[str, str]) -> Expected:
    """What a copy must hold by its own records and manifests. `named` is what the records say of the manifests.

    A manifest that is the one the records name, with as many lines as they know files, says nothing new and is not read
    line by line. Raises UsageError (SF-110) for a line that cannot be.
    """
    listing = Listing()
    hashes, differing = {}, []
    try:
        listing.begin()
        listing.add_records(records)
        for name, path in manifest.of_folder(records).items():
            hashes[name], count = _hash(path)
            if hashes[name] != named.get(name) or count != listing.count_digests(name):
                differing += listing.add_manifest(manifest.read(path, name, ours=True))
        listing.commit()
    except BaseException:
        listing.close()
        raise
    return Expected(listing, hashes, differing)


def of_manifest(path: str, algorithm: str | None = None) -> Listing:
    """What a copy must hold by a manifest that others wrote; raises UsageError (SF-110, SF-111)."""
    listing = Listing()
    try:
        listing.begin()
        listing.add_manifest(manifest.read(path, algorithm))
        listing.commit()
    except BaseException:
        listing.close()
        raise
    return listing


def _hash(path: str) -> tuple[str, int]:
    """(SHA-256, number of lines) of a manifest."""
    import hashlib

    hasher, count = hashlib.sha256(), 0
    try:
        with record.open_ours(path) as file:
            while block := file.read(1 << 20):
                hasher.update(block)
                count += block.count(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {printable(path)}: {error.strerror}", code="SF-111", path=path) from error
    return hasher.hexdigest(), count
