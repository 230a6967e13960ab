"""What a copy must hold: a temporary journal, folded from its records and manifests, so that memory stays flat whatever
the number of files.

`record.fold` fills it with what was kept of each entry; manifests and a walk of the source add what nobody has
recorded; what a check found is written back into the rows. The file behind it is SQLite's own temporary one: nothing of
it outlives the process.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from scopeferry.copying import manifest, record
from scopeferry.copying.record import FOLDER, path_json, split
from scopeferry.errors import UsageError
from scopeferry.kernel import journal as states
from scopeferry.kernel.digest import ALGORITHMS, SEAL, new
from scopeferry.kernel.journal import PAGE, Journal, Row
from scopeferry.kernel.publish import Mark
from scopeferry.kernel.task import Control
from scopeferry.logs import printable

# What is to be done with a row, and what came of it. OFF: only other metadata; BAD: other bytes, or none.
CHECK, LEFT_OUT, GOOD, OFF, BAD, HEALED = range(6)
FILES = (states.FILE, states.HARDLINK)
LEAVES = (*FILES, states.SYMLINK)

KINDS = {states.FILE: "file", FOLDER: "folder", states.SYMLINK: "link", states.HARDLINK: "hardlink"}
_ROWS = (
    "SELECT i.folder, f.path, i.name, i.kind, i.state, i.size, i.mtime_ns, i.source, i.stored, i.digest, i.recipe "
    "FROM items i JOIN folders f ON f.id = i.folder WHERE "
)


class Item(NamedTuple):
    """What is expected of one entry of a copy; None: nobody knows.

    ``path`` is that at the destination, ``origin`` that at the source; ``mtime_ns``, ``mode``, ``target`` and
    ``xattrs`` (JSON) are what was kept; ``further`` are digests by other algorithms; ``leader`` is the path at the
    source of the file it is a hard link of; ``found``: no record names it, but a manifest or the source; ``freed``: at
    its source. ``inode`` and ``ctime_ns`` are what a check saw (0: nothing), ``names`` how many names the inode had.
    """

    path: bytes
    origin: bytes
    kind: int
    state: int = CHECK
    size: int | None = None
    source_mtime_ns: int | None = None
    algorithm: str | None = None
    digest: bytes | None = None
    further: dict[str, bytes] = {}  # noqa: RUF012  (never written)
    mtime_ns: int | None = None
    mode: int | None = None
    target: bytes | None = None
    xattrs: str | None = None
    leader: bytes | None = None
    found: bool = True
    freed: bool = False
    inode: int = 0
    ctime_ns: int = 0
    names: int = 1

    @property
    def link(self) -> str | None:
        """Where a symbolic link leads, as the system decodes it."""
        return None if self.target is None else os.fsdecode(self.target)

    @property
    def digests(self) -> dict[str, bytes]:
        """All digests that are known, the working one first."""
        return self.further if self.digest is None else {self.algorithm or "": self.digest, **self.further}

    def line(self, action: str, **more: Any) -> str:
        """What a record says of it: all that is known, so that nothing is forgotten by a later line."""
        facts: dict[str, Any] = {
            "kind": KINDS[self.kind], "size": self.size, "mtime_ns": self.source_mtime_ns,
            "mode": self.mode, "target": self.link, "xattrs": json.loads(self.xattrs) if self.xattrs else None,
            "action": action, "digest": {name: digest.hex() for name, digest in self.digests.items()} or None,
            "leader": None if self.leader is None else os.fsdecode(self.leader),
            "stored_b64": base64.b64encode(self.path).decode() if self.path != self.origin else None,
            "lost": ["times"] if self.mtime_ns is None and self.source_mtime_ns is not None else None, **more,
        }  # fmt: skip
        rest = json.dumps({key: value for key, value in facts.items() if value is not None})
        return f"{{{path_json(os.fsdecode(self.origin))}, {rest[1:]}"


class Expected(Journal):
    """A journal of what must stand, keyed by the path at the source. Use it from one thread; close it when done.

    In its rows ``source`` and ``stored`` are the inode and the change time that a check saw, a size of -1 is not known.
    ``hashes``, ``lines``: algorithm -> SHA-256 and number of lines of its manifest; ``differing``: paths of which
    manifest and record say other digests, the first 100.
    """

    def __init__(self) -> None:
        super().__init__("")
        self.hashes: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.differing: list[bytes] = []
        self._known: dict[int, str] = {}  # recipes by number
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("CREATE INDEX stands ON details (value) WHERE key = 'as'")

    # -- filling -------------------------------------------------------------------------------------------------------

    def put(self, items: Iterable[Item]) -> None:
        """Put rows in, in place of what was known of their paths at the source."""
        self.settle((split(item.origin)[0], self._row(item), self._details(item)) for item in items)

    def _row(self, item: Item) -> Row:
        size = -1 if item.size is None else item.size
        recipe = None if item.algorithm is None else self.recipe({"folded": True, "digests": [item.algorithm]})
        return Row(
            split(item.origin)[1], item.kind, item.state, size, item.source_mtime_ns or 0, item.inode, item.ctime_ns,
            None, item.digest, recipe,
        )  # fmt: skip

    @staticmethod
    def _details(item: Item) -> dict[str, Any]:
        return {
            "as": item.path if item.path != item.origin else None,
            "target": item.target,
            "names": item.names if item.names > 1 else None,
            "found": 1 if item.found else None,
            **{f"digest:{name}": digest for name, digest in item.further.items()},
        }

    def add_manifest(self, lines: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Merge a manifest in. Where it and the record know a digest by one algorithm, the record's is kept."""
        new: dict[bytes, Item] = {}
        for algorithm, path, digest in lines:
            was = new.get(path) or self.at(path)
            if was is None:
                new[path] = Item(path, path, states.FILE, algorithm=algorithm, digest=digest)
            elif was.digest is None:
                new[path] = was._replace(algorithm=algorithm, digest=digest)
            elif (known := was.digests.get(algorithm)) is not None:
                if known != digest and len(self.differing) < 100:
                    self.differing.append(path)
            elif was.found:
                new[path] = was._replace(further={**was.further, algorithm: digest})
            if len(new) >= PAGE:
                self.put(new.values())
                new = {}
        self.put(new.values())

    # -- reading -------------------------------------------------------------------------------------------------------

    def of(self, path: bytes) -> Item | None:
        """What is expected of a path of the source."""
        head, name = split(path)
        return next(self._made(self._db.execute(f"{_ROWS} f.path=? AND i.name=?", (head, name)).fetchall()), None)

    def at(self, path: bytes) -> Item | None:
        """What is expected at a path of the destination."""
        there = (
            "SELECT f.path, d.name FROM details d JOIN folders f ON f.id = d.folder WHERE d.key = 'as' AND d.value=?"
        )
        mapped = self._db.execute(there, (path,)).fetchone()
        found = self.of(path if mapped is None else b"".join(mapped))
        return found if found is not None and found.path == path else None

    def known(self, head: bytes, names: Iterable[bytes]) -> set[bytes]:
        """Those of some names of a folder of the destination that are expected there."""
        if self._db.execute("SELECT 1 FROM details WHERE key = 'as' LIMIT 1").fetchone() is None:
            return set(self.rows(head, names))
        return {name for name in names if self.at(head + name) is not None}

    def items(self, *wanted: int, kinds: tuple[int, ...] = ()) -> Iterator[Item]:
        """The rows in these states (or all), folder by folder; they may be changed meanwhile."""
        where = f"i.state IN ({','.join(map(str, wanted))}) AND " if wanted else ""
        where += f"i.kind IN ({','.join(map(str, kinds))}) AND " if kinds else ""
        sql = f"{_ROWS} {where} (i.folder, i.name) > (?, ?) ORDER BY i.folder, i.name LIMIT {PAGE}"
        at: tuple[int, bytes] = (-1, b"")
        while page := self._db.execute(sql, at).fetchall():
            yield from self._made(page)
            at = (page[-1][0], page[-1][2])

    def _made(self, page: list[tuple[Any, ...]]) -> Iterator[Item]:
        """The items of some rows that follow one another."""
        if not page:
            return
        details: dict[tuple[int, bytes], dict[str, Any]] = {}
        between = "SELECT * FROM details WHERE (folder, name) >= (?, ?) AND (folder, name) <= (?, ?)"
        for folder, name, key, value in self._db.execute(between, (page[0][0], page[0][2], page[-1][0], page[-1][2])):
            details.setdefault((folder, name), {})[key] = value
        for folder, head, name, kind, state, size, mtime_ns, inode, ctime_ns, digest, recipe in page:
            more = details.get((folder, name), {})
            further = {key[7:]: value for key, value in more.items() if key.startswith("digest:")}
            algorithm = self._algorithm(recipe) if digest is not None else next(iter(further), None)
            if digest is None and algorithm is not None:
                digest = further.pop(algorithm)
            path, found = head + name, "found" in more
            yield Item(
                more.get("as", path), path, kind, state, size if size >= 0 and kind != FOLDER else None,
                None if found else mtime_ns, algorithm, digest, further, more.get("time"), more.get("mode"),
                more.get("target"), more.get("xattrs"), more.get("leader"), found, "freed" in more, inode,
                ctime_ns or 0, more.get("names", 1),
            )  # fmt: skip

    def _algorithm(self, recipe: int) -> str | None:
        if recipe not in self._known:
            self._known = self.algorithms()
        return self._known.get(recipe)

    def totals(self) -> dict[int, tuple[int, int]]:
        """State -> (files and links, their bytes)."""
        sql = "SELECT state, COUNT(*), SUM(MAX(size, 0)) FROM items WHERE kind<>? GROUP BY state"
        return {state: (count, size) for state, count, size in self._db.execute(sql, (FOLDER,))}

    def count_of(self, *wanted: int) -> int:
        """How many entries of all kinds are in these states."""
        sql = f"SELECT COUNT(*) FROM items WHERE state IN ({','.join(map(str, wanted))})"
        return int(self._db.execute(sql).fetchone()[0])

    def used_algorithms(self) -> list[str]:
        """The algorithms of which some file has a digest."""
        used = self.manifest_algorithms()
        return [name for name in ALGORITHMS if name in used]

    def count_digests(self, algorithm: str) -> int:
        """How many files have a digest by this algorithm."""
        return sum(1 for _ in self.manifest(algorithm))

    def unwritten(self) -> set[str]:
        """The algorithms whose manifest is not there, or lacks lines."""
        return {name for name in self.used_algorithms() if self.lines.get(name, -1) < self.count_digests(name)}

    # -- what a check found --------------------------------------------------------------------------------------------

    def sample(self, percent: float, proved: Iterable[tuple[bytes, float]] = ()) -> None:
        """Leave out all files but `percent` %, those proved longest ago; links and folders stay.

        `proved`: (path at the source, seconds since the epoch) of proofs that the records do not know.
        """
        with self._writing():
            for path, at in proved:
                head, name = split(path)
                self.note("proved", [(head, name, max(at, self.detail(head, name, "proved") or 0))])
        files = f"i.kind IN ({states.FILE}, {states.HARDLINK})"
        wanted = -(-self._db.execute(f"SELECT COUNT(*) FROM items i WHERE {files}").fetchone()[0] * percent // 100)
        oldest = (
            "SELECT i.folder, i.name FROM items i LEFT JOIN details d ON d.folder = i.folder AND d.name = i.name "
            f"AND d.key = 'proved' WHERE {files} ORDER BY COALESCE(d.value, 0), i.folder, i.name LIMIT ?"
        )
        self._db.execute(f"UPDATE items AS i SET state={LEFT_OUT} WHERE {files}")
        self._db.execute(f"UPDATE items SET state={CHECK} WHERE (folder, name) IN ({oldest})", (int(wanted),))

    def mark(self, found: Iterable[tuple[Item, int, Mark | None]]) -> None:
        """Write the state that items are in now, and the mark of what stands there."""
        with self._writing():
            for item, state, mark in found:
                head, name = split(item.origin)
                inode, ctime_ns = (0, 0) if mark is None else (mark.inode, mark.ctime_ns)
                values = (state, inode, ctime_ns, self.folder_id(head), name)
                self._db.execute("UPDATE items SET state=?, source=?, stored=? WHERE folder=? AND name=?", values)

    def moved(self, inode: int, ctime_ns: int, now_ns: int) -> None:
        """One name of an inode has gone: the others have another time of change now."""
        self._db.execute("CREATE INDEX IF NOT EXISTS inodes ON items (source)")
        self._db.execute("UPDATE items SET stored=? WHERE source=? AND stored=?", (now_ns, inode, ctime_ns))


def of_copy(records: str, named: dict[str, str], control: Control) -> Expected:
    """What a copy must hold by its own records and manifests. `named` is what the records say of the manifests.

    A manifest that is the one the records name, with as many lines as they know files, says nothing new and is not read
    line by line. Raises UsageError (SF-110) for a line that cannot be.
    """
    expected = Expected()
    try:
        record.fold(records, expected, whole=True, between=control.check)
        for name, path in manifest.of_folder(records).items():
            expected.hashes[name], expected.lines[name] = _hash(path)
            if expected.hashes[name] != named.get(name) or expected.lines[name] != expected.count_digests(name):
                expected.add_manifest(manifest.read(path, name, ours=True))
    except BaseException:
        expected.close()
        raise
    return expected


def of_manifest(path: str, algorithm: str | None = None) -> Expected:
    """What a copy must hold by a manifest that others wrote; raises UsageError (SF-110, SF-111)."""
    expected = Expected()
    try:
        expected.add_manifest(manifest.read(path, algorithm))
    except BaseException:
        expected.close()
        raise
    return expected


def _hash(path: str) -> tuple[str, int]:
    """(SHA-256, number of lines) of a manifest."""
    hasher, count = new(SEAL), 0
    try:
        with record.open_ours(path) as file:
            while block := file.read(1 << 20):
                hasher.update(block)
                count += block.count(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {printable(path)}: {error.strerror}", code="SF-111", path=path) from error
    return str(hasher.hexdigest()), count
