"""The journal: one SQLite file per destination, kept across runs. The only module with SQL that writes one.

It is the index of what a copy should hold: a row per item, keyed by (folder id, name), about 66 B and the name. It lags
reality and never leads it: a row becomes DONE after its file is published and durable. Names are bytes. The
coordinator is the only writer; readers (`status`, another process) look in short transactions and never stop it.

The plan lies here too: the walk writes what is to be done as open states, the copy reads open rows. So what was in
flight at a kill, what vanished, forecast and order of 10^6 names come from one place, and memory stays flat.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, Self

from scopeferry.errors import Failed, Temporary, UsageError
from scopeferry.kernel import publish
from scopeferry.kernel.digest import DEFAULT

APPLICATION_ID = 0x5346_4A31  # "SFJ1"
VERSION = 1
PAGE = 1000  # rows read at a time, so that no read transaction stays open while items are settled
FEW_NAMES, MANY_NAMES = 8, 64  # in one question

# States of a row. Below FAILED it is open: planned, and not known to be done.
DONE = 0
COPY = 1  #     nothing stands at the destination
REPLACE = 2  #  our earlier version stands there
CHECK = 3  #    ours, but not known to be right any more: read both, heal
JUDGE = 4  #    not ours: read both, adopt or refuse
LINK = 5  #     to be made a hard link of another row's file
CHECK_SOURCE = 6  # ours; only the source's inode or change time moved: read that side
CHECK_STORED = 7  # ours; only the copy's did
FAILED = 8
CONFLICT = 9
CHECK_ONE = (CHECK_SOURCE, CHECK_STORED)
OPEN = (COPY, REPLACE, CHECK, JUDGE, LINK, CHECK_SOURCE, CHECK_STORED)

# What `fingerprint` is made of; the walk has it in its innermost loop.
MASK, HALF = 0xFFFF_FFFF_FFFF_FFFF, 0x8000_0000_0000_0000
INODE, TIME, SIZE = 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9

# Kinds of an item.
FILE, SYMLINK, HARDLINK = 0, 1, 2

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE recipes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE folders (
  id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, mode INTEGER, mtime_ns INTEGER,
  touched INTEGER NOT NULL DEFAULT 0);
CREATE TABLE items (
  folder INTEGER NOT NULL, name BLOB NOT NULL, kind INTEGER NOT NULL, state INTEGER NOT NULL, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, source INTEGER NOT NULL, stored INTEGER, stored_mtime_ns INTEGER, digest BLOB,
  recipe INTEGER, PRIMARY KEY (folder, name)) WITHOUT ROWID;
CREATE TABLE details (
  folder INTEGER NOT NULL, name BLOB NOT NULL, key TEXT NOT NULL, value,
  PRIMARY KEY (folder, name, key)) WITHOUT ROWID;
CREATE TABLE runs (id TEXT PRIMARY KEY, data TEXT NOT NULL) WITHOUT ROWID;
"""
_COLUMNS = "name, kind, state, size, mtime_ns, source, stored, stored_mtime_ns, digest, recipe"


class Row(NamedTuple):
    """What the journal knows of one item.

    ``source`` and ``stored`` are 64-bit hashes of (inode, ctime_ns) at the source and of (size, inode, ctime_ns) at the
    destination; ``stored_mtime_ns`` is None where it equals ``mtime_ns``; ``digest`` is the working digest of the
    bytes that stand at the destination.
    """

    name: bytes
    kind: int
    state: int
    size: int
    mtime_ns: int
    source: int
    stored: int | None = None
    stored_mtime_ns: int | None = None
    digest: bytes | None = None
    recipe: int | None = None

    @property
    def noted_mtime_ns(self) -> int:
        """The modification time at the destination, as it was noted."""
        return self.mtime_ns if self.stored_mtime_ns is None else self.stored_mtime_ns

    @property
    def open(self) -> bool:
        """Is there something to do?"""
        return DONE < self.state < FAILED


def fingerprint(inode: int, time_ns: int, size: int = 0) -> int:
    """A 64-bit signed hash of an identity; any difference shows, but for one case in 2^64.

    >>> fingerprint(1, 2) == fingerprint(1, 2), fingerprint(1, 2) == fingerprint(2, 1)
    (True, False)
    """
    return (inode * INODE + time_ns * TIME + size * SIZE & MASK) - HALF


class Journal:
    """An open journal. ``with Journal(path) as journal``; closing twice is harmless.

    Raises UsageError (SF-108) for a newer schema, Temporary (SF-324) if another program holds it, Failed (SF-304) if
    it cannot be written. A damaged file is set aside by name and a new one begun: ``rebuilt`` then says so.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.rebuilt = ""
        self.fresh = False
        self._ids: dict[bytes, int] = {}
        self._db = self._open_or_set_aside()

    @classmethod
    def reading(cls, path: str) -> Journal:
        """A journal that stands, opened for reading beside its writer."""
        journal = cls.__new__(cls)
        journal.path, journal.rebuilt, journal.fresh, journal._ids = path, "", False, {}  # noqa: SLF001
        journal._db = db = sqlite3.connect(path, timeout=10, isolation_level=None)  # noqa: SLF001
        db.execute("PRAGMA query_only=1")
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with suppress(sqlite3.Error):
            self._db.close()

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open_or_set_aside(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and not _is_damage(error):
                raise _translated(error, self.path) from error
            aside = f"{self.path}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
            publish.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    publish.replace(self.path + suffix, aside + suffix)
            self.rebuilt = aside
            return self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
            if version == 0 and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                self._create(db)
            elif application != APPLICATION_ID:
                raise UsageError(
                    f"not a journal of scopeferry: {self.path}", code="SF-108", hint="name another file with --journal"
                )
            elif version > VERSION:
                raise UsageError(
                    f"journal {self.path} has schema {version}, this scopeferry knows {VERSION}", code="SF-108"
                )
            db.execute("PRAGMA synchronous=NORMAL")
            _check(db)
        except BaseException:
            db.close()
            raise
        return db

    def _create(self, db: sqlite3.Connection) -> None:
        self.fresh = True
        db.execute("PRAGMA page_size=8192")
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; COMMIT;"
        )
        with suppress(OSError):
            os.chmod(self.path, 0o600)

    # -- small facts ---------------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """A fact about the whole copy (str, int, bytes)."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return default if row is None else row[0]

    def set(self, **facts: Any) -> None:
        """Set facts about the whole copy, in one transaction."""
        with self._writing():
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", facts.items())

    def facts(self, prefix: str) -> list[tuple[str, Any]]:
        """(key, value) of those that begin so."""
        return self._db.execute(
            "SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
        ).fetchall()

    def recipe(self, recipe: dict[str, Any]) -> int:
        """The id of a recipe: what is kept, how names are mapped, which digests."""
        text = json.dumps(recipe, sort_keys=True)
        row = self._db.execute("SELECT id FROM recipes WHERE text=?", (text,)).fetchone()
        if row is None:
            with self._writing():
                self._db.execute("INSERT INTO recipes (text) VALUES (?)", (text,))
            return self.recipe(recipe)
        return int(row[0])

    def algorithms(self) -> dict[int, str]:
        """Recipe id -> its working digest."""
        found = self._db.execute("SELECT id, text FROM recipes")
        return {number: json.loads(text).get("digests", [DEFAULT])[0] for number, text in found}

    def note_run(self, run: str, data: dict[str, Any]) -> None:
        """How a run stands: for `status`."""
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO runs VALUES (?, ?)", (run, json.dumps(data)))

    def runs(self) -> dict[str, dict[str, Any]]:
        """Run id -> how it stands."""
        return {run: json.loads(data) for run, data in self._db.execute("SELECT id, data FROM runs ORDER BY id")}

    def _writing(self) -> _Transaction:
        return _Transaction(self._db, self.path)

    # -- folders -------------------------------------------------------------------------------------------------------

    def folder_id(self, path: bytes, *, make: bool = False) -> int | None:
        """The id of a folder (b"" is the root, else b"a/b/"); None if it is not known and not to be made."""
        known = self._ids.get(path)
        if known is not None:
            return known
        row = self._db.execute("SELECT id FROM folders WHERE path=?", (path,)).fetchone()
        if row is None:
            if not make:
                return None
            cursor = self._db.execute("INSERT INTO folders (path) VALUES (?)", (path,))
            row = (cursor.lastrowid,)
        if len(self._ids) > PAGE:
            self._ids.clear()
        self._ids[path] = row[0]
        return int(row[0])

    def folder(self, path: bytes) -> dict[bytes, Row]:
        """All rows of a folder, by name."""
        folder = self.folder_id(path)
        if folder is None:
            return {}
        found = self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE folder=?", (folder,))
        return {row[0]: Row._make(row) for row in found}

    def raw_folder(self, path: bytes) -> dict[bytes, tuple[Any, ...]]:
        """As `folder`, as plain tuples: the walk of a finished copy spends most of its time here."""
        folder = self.folder_id(path)
        if folder is None:
            return {}
        return {row[0]: row for row in self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE folder=?", (folder,))}

    def folder_facts(self, path: bytes) -> tuple[int, int | None, int | None, int] | None:
        """(id, mode, mtime_ns, touched) of a folder, or None."""
        found: tuple[int, int | None, int | None, int] | None = self._db.execute(
            "SELECT id, mode, mtime_ns, touched FROM folders WHERE path=?", (path,)
        ).fetchone()
        if found is not None:
            if len(self._ids) > PAGE:
                self._ids.clear()
            self._ids[path] = found[0]
        return found

    def folder_count(self) -> int:
        """How many folders the journal knows."""
        return int(self._db.execute("SELECT COUNT(*) FROM folders WHERE mode IS NOT NULL").fetchone()[0])

    def count(self, path: bytes) -> int:
        """How many rows a folder has."""
        folder = self.folder_id(path)
        return (
            0
            if folder is None
            else self._db.execute("SELECT COUNT(*) FROM items WHERE folder=?", (folder,)).fetchone()[0]
        )

    def rows(self, path: bytes, names: Iterable[bytes]) -> dict[bytes, tuple[Any, ...]]:
        """The rows of these names of a folder, as plain tuples."""
        folder = self.folder_id(path)
        if folder is None:
            return {}
        found: dict[bytes, tuple[Any, ...]] = {}
        rest = iter(names)
        while some := list(islice(rest, MANY_NAMES)):
            if len(some) > 1:  # few texts for any number of names: each is understood once
                some += some[-1:] * ((FEW_NAMES if len(some) <= FEW_NAMES else MANY_NAMES) - len(some))
            marks = ",".join("?" * len(some))
            sql = f"SELECT {_COLUMNS} FROM items WHERE folder=? AND name IN ({marks})"
            found.update((row[0], row) for row in self._db.execute(sql, (folder, *some)))
        return found

    def row(self, path: bytes) -> Row | None:
        """The row of one path."""
        head, _, name = path.rpartition(b"/")
        found = self.rows(head + b"/" if head else b"", [name])
        return Row._make(found[name]) if found else None

    def folders(self, *, touched: bool = False) -> Iterator[tuple[bytes, int | None, int | None]]:
        """(path, mode, mtime_ns) of folders, deepest first; only those that need their mode and time set, if asked
        for.
        """
        where = "touched AND" if touched else ""
        last = None
        while True:
            after = "" if last is None else "AND path < ?"
            page = self._db.execute(
                f"SELECT path, mode, mtime_ns FROM folders WHERE {where} mode IS NOT NULL {after} "
                f"ORDER BY path DESC LIMIT {PAGE}",
                () if last is None else (last,),
            ).fetchall()
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1][0]

    # -- plan, settle --------------------------------------------------------------------------------------------------

    def plan(
        self,
        path: bytes,
        entries: Iterable[Row],
        *,
        mode: int | None = None,
        mtime_ns: int | None = None,
        touched: bool = False,
    ) -> None:
        """What the walk found in one folder, merged with what stands: rows DONE or open. Call `commit` after some
        folders.
        """
        self._begin()
        folder = self.folder_id(path, make=True)
        if mode is not None:
            self._db.execute(
                "UPDATE folders SET mode=?, mtime_ns=?, touched=touched OR ? WHERE id=? "
                "AND (mode IS NOT ? OR mtime_ns IS NOT ? OR ?)",
                (mode, mtime_ns, touched, folder, mode, mtime_ns, touched),
            )
        self._db.executemany(
            f"INSERT OR REPLACE INTO items (folder, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            ((folder, *row) for row in entries),
        )

    def forget(self, path: bytes, names: Iterable[bytes]) -> None:
        """Drop rows that nothing stands behind any more."""
        self._begin()
        folder = self.folder_id(path, make=True)
        self._db.executemany("DELETE FROM items WHERE folder=? AND name=?", ((folder, name) for name in names))
        self._db.executemany("DELETE FROM details WHERE folder=? AND name=?", ((folder, name) for name in names))

    def touch(self, paths: Iterable[bytes], *, touched: bool = True) -> None:
        """Note that the mode and time of these folders are to be set at the end, or have been."""
        self._begin()
        self._db.executemany("UPDATE folders SET touched=? WHERE path=?", ((int(touched), path) for path in paths))

    def commit(self) -> None:
        """End the transaction that `plan`, `forget` or `touch` began."""
        if self._db.in_transaction:
            _Transaction(self._db, self.path).commit()

    def _begin(self) -> None:
        if not self._db.in_transaction:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _translated(error, self.path) from error

    def settle(self, results: Iterable[tuple[bytes, Row, dict[str, Any]]]) -> None:
        """What became of items: (folder path, row, details to keep), in one transaction."""
        with self._writing():
            for path, row, details in results:
                folder = self.folder_id(path, make=True)
                self._db.execute(
                    f"INSERT OR REPLACE INTO items (folder, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", (folder, *row)
                )
                for key, value in details.items():
                    if value is None:
                        self._db.execute(
                            "DELETE FROM details WHERE folder=? AND name=? AND key=?", (folder, row.name, key)
                        )
                    else:
                        self._db.execute(
                            "INSERT OR REPLACE INTO details VALUES (?,?,?,?)", (folder, row.name, key, value)
                        )

    def note(self, key: str, found: Iterable[tuple[bytes, bytes, Any]]) -> None:
        """Set one detail of items that the journal knows, or of folders (which have no name): (folder path, name,
        value), in one transaction. None removes it.
        """
        with self._writing():
            known = ((self.folder_id(path), name, value) for path, name, value in found)
            rows = [(folder, name, key, value) for folder, name, value in known if folder is not None]
            self._db.executemany("INSERT OR REPLACE INTO details VALUES (?,?,?,?)", rows)
            gone = [row[:3] for row in rows if row[3] is None]
            self._db.executemany("DELETE FROM details WHERE folder=? AND name=? AND key=?", gone)

    # -- reading -------------------------------------------------------------------------------------------------------

    def details(self, key: str, path: bytes | None = None) -> dict[tuple[bytes, bytes], Any]:
        """(folder path, name) -> value of one kind of detail; of one folder, or of all (for kinds that are rare)."""
        sql = "SELECT f.path, d.name, d.value FROM details d JOIN folders f ON f.id = d.folder WHERE d.key=?"
        found = self._db.execute(sql, (key,)) if path is None else self._db.execute(sql + " AND f.path=?", (key, path))
        return {(folder, name): value for folder, name, value in found}

    def noted(self, key: str) -> Iterator[tuple[bytes, Any]]:
        """(path, value) of one kind of detail, a page at a time."""
        at: tuple[int, bytes] = (-1, b"")
        while True:
            page = self._db.execute(
                "SELECT f.path, d.name, d.value, d.folder FROM details d JOIN folders f ON f.id = d.folder "
                f"WHERE d.key=? AND (d.folder, d.name) > (?, ?) ORDER BY d.folder, d.name LIMIT {PAGE}", (key, *at),
            ).fetchall()  # fmt: skip
            for path, name, value, _ in page:
                yield path + name, value
            if len(page) < PAGE:
                return
            at = (page[-1][3], page[-1][1])

    def renamed(self, path: bytes) -> dict[bytes, bytes]:
        """Name -> stored path, of those in a folder (subfolders too) whose own name is another one at the
        destination.
        """
        folder = self.folder_id(path)
        sql = "SELECT name, value FROM details WHERE folder=? AND key='as' AND substr(value, -length(name)) IS NOT name"
        return dict(self._db.execute(sql, (folder,)))

    def rows_of(self, path: bytes) -> Iterator[tuple[Any, ...]]:
        """All rows of a folder by name, as plain tuples, read a page at a time; they may be changed meanwhile."""
        folder = self.folder_id(path)
        if folder is not None:
            yield from self._names(folder)

    def detail(self, path: bytes, name: bytes, key: str) -> Any:
        """One detail of one item, or None."""
        folder = self.folder_id(path)
        row = self._db.execute(
            "SELECT value FROM details WHERE folder=? AND name=? AND key=?", (folder, name, key)
        ).fetchone()
        return None if row is None else row[0]

    def open_rows(self, states: tuple[int, ...]) -> Iterator[tuple[bytes, Row]]:
        """(folder path, row) of all rows in these states, folder by folder, read a page at a time."""
        marks = ",".join(map(str, states))
        at: tuple[int, bytes] = (-1, b"")
        while True:
            page = self._db.execute(
                f"SELECT i.folder, f.path, {', '.join('i.' + c for c in _COLUMNS.split(', '))} "
                f"FROM items i JOIN folders f ON f.id = i.folder "
                f"WHERE i.state IN ({marks}) AND (i.folder, i.name) > (?, ?) ORDER BY i.folder, i.name LIMIT {PAGE}",
                at,
            ).fetchall()
            for _, path, *row in page:
                yield path, Row._make(row)
            if len(page) < PAGE:
                return
            at = (page[-1][0], page[-1][2])

    def has_more_than(self, count: int) -> bool:
        """Has the journal more rows than this?"""
        return self._db.execute("SELECT 1 FROM items LIMIT 1 OFFSET ?", (count,)).fetchone() is not None

    def totals(self) -> dict[int, tuple[int, int]]:
        """State -> (items, bytes)."""
        found = self._db.execute("SELECT state, COUNT(*), SUM(size) FROM items GROUP BY state")
        return {state: (count, size) for state, count, size in found}

    def entries(self, prefix: bytes = b"", states: tuple[int, ...] | None = None) -> Iterator[tuple[bytes, Row]]:
        """(path, row) of all items in the order of their path's bytes, as they stand now; SQLite sorts, on disk if need
        be.

        ``a.b`` sorts between ``a`` and ``a/``, so no listing has this order.
        """
        where = "" if states is None else f"AND i.state IN ({','.join(map(str, states))})"
        columns = ", ".join(f"i.{column}" for column in _COLUMNS.split(", "))
        found = self._db.execute(
            f"SELECT CAST(f.path || i.name AS BLOB) AS full, {columns} FROM items i JOIN folders f ON f.id = i.folder "
            f"WHERE substr(full, 1, ?) = ? {where} ORDER BY full", (len(prefix), prefix),
        )  # fmt: skip
        return ((path, Row._make(row)) for path, *row in found)

    def _names(self, folder: int) -> Iterator[tuple[Any, ...]]:
        return self._paged(
            f"SELECT {_COLUMNS} FROM items WHERE folder={folder} AND name > ? ORDER BY name LIMIT ?", b""
        )

    def _paged(self, sql: str, start: bytes) -> Iterator[tuple[Any, ...]]:
        size = 100
        while True:
            page = self._db.execute(sql, (start, size)).fetchall()
            yield from page
            if len(page) < size:
                return
            start, size = page[-1][0], PAGE

    def manifest_algorithms(self) -> list[str]:
        """The algorithms of which some file has a digest."""
        further = self.further_algorithms()
        used = {number for (number,) in self._db.execute("SELECT DISTINCT recipe FROM items WHERE digest IS NOT NULL")}
        return list(dict.fromkeys([name for number, name in self.algorithms().items() if number in used] + further))

    def further_algorithms(self) -> list[str]:
        """The algorithms of which some file has a digest beside its working one."""
        found = self._db.execute("SELECT DISTINCT key FROM details WHERE key LIKE 'digest:%'")
        return [key[7:] for (key,) in found]

    def manifest(self, algorithm: str) -> Iterator[tuple[bytes, bytes]]:
        """(path at the destination, digest) of each file whose digest by this algorithm is known, sorted by path
        bytes, as they stand now.
        """
        recipes = ",".join(str(number) for number, name in self.algorithms().items() if name == algorithm) or "NULL"
        path, digest, joins = "f.path || i.name", f"CASE WHEN i.recipe IN ({recipes}) THEN i.digest END", ""
        if self.has_detail("as"):
            path = f"COALESCE(a.value, {path})"
            joins += "LEFT JOIN details a ON a.folder = i.folder AND a.name = i.name AND a.key = 'as' "
        if self.has_detail(f"digest:{algorithm}"):
            digest = f"COALESCE({digest}, d.value)"
            joins += f"LEFT JOIN details d ON d.folder = i.folder AND d.name = i.name AND d.key = 'digest:{algorithm}'"
        return self._db.execute(
            f"SELECT CAST({path} AS BLOB) AS full, {digest} AS found FROM items i JOIN folders f ON f.id = i.folder "
            f"{joins} WHERE i.kind != {SYMLINK} AND found IS NOT NULL ORDER BY full"
        )

    def losses(self) -> dict[str, int]:
        """Kind -> how many items of the copy lack it."""
        found: dict[str, int] = {}
        for kinds, count in self._db.execute("SELECT value, COUNT(*) FROM details WHERE key='lost' GROUP BY value"):
            for kind in kinds.split(","):
                found[kind] = found.get(kind, 0) + count
        return found

    def has_detail(self, key: str) -> bool:
        """Has some item a detail of this kind?"""
        return self._db.execute("SELECT 1 FROM details WHERE key=? LIMIT 1", (key,)).fetchone() is not None

    # -- names of folders too large for memory, hard links -------------------------------------------------------------

    def scratch(self) -> Scratch:
        """A temporary table of this run, on disk where it grows."""
        return Scratch(self._db)


class Scratch:
    """Listings of one walk that may be too large for memory: hard links by inode, and the names of one folder."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.execute("PRAGMA temp_store=FILE")
        db.execute(
            "CREATE TEMP TABLE IF NOT EXISTS links "
            "(inode TEXT, path BLOB, state INTEGER, PRIMARY KEY (inode, path)) WITHOUT ROWID"
        )
        db.execute("CREATE TEMP TABLE IF NOT EXISTS names (name BLOB PRIMARY KEY) WITHOUT ROWID")
        db.execute("CREATE TEMP TABLE IF NOT EXISTS keys (key BLOB, name BLOB, PRIMARY KEY (key, name)) WITHOUT ROWID")

    def clear(self) -> None:
        """Forget everything."""
        self._db.execute("DELETE FROM links")
        self._db.execute("DELETE FROM names")

    def add_link(self, inode: str, path: bytes, state: int) -> None:
        """Note one name of an inode that has several."""
        self._db.execute("INSERT OR REPLACE INTO links VALUES (?,?,?)", (inode, path, state))

    def link_groups(self, *, of: str = "") -> Iterator[list[tuple[bytes, int]]]:
        """The (path, state) of each inode that was found under at least two names, sorted by path.

        Of files, or of what was noted with `of` before its inode.
        """
        several = (
            "SELECT inode FROM links WHERE inode GLOB ? AND inode > ? GROUP BY inode HAVING COUNT(*) > 1 "
            f"ORDER BY inode LIMIT {PAGE}"
        )
        last = ""
        while inodes := self._db.execute(several, (f"{of}[0-9]*", last)).fetchall():
            for (last,) in inodes:
                yield self._db.execute("SELECT path, state FROM links WHERE inode=? ORDER BY path", (last,)).fetchall()

    def add_names(self, names: Iterable[bytes]) -> None:
        """Note names of the folder that is being walked."""
        self._db.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((name,) for name in names))

    def has_name(self, name: bytes) -> bool:
        """Was this name noted?"""
        return self._db.execute("SELECT 1 FROM names WHERE name=?", (name,)).fetchone() is not None

    def twins(self, names: Iterable[tuple[bytes, bytes]]) -> Iterator[list[bytes]]:
        """Of (key, name) pairs, the names of each key that has several."""
        self._db.execute("DELETE FROM keys")
        self._db.executemany("INSERT OR IGNORE INTO keys VALUES (?,?)", names)
        several = "SELECT key FROM keys GROUP BY key HAVING COUNT(*) > 1"
        for (key,) in self._db.execute(several).fetchall():
            yield [name for (name,) in self._db.execute("SELECT name FROM keys WHERE key=?", (key,))]
        self._db.execute("DELETE FROM keys")

    def clear_names(self) -> None:
        """Begin another folder."""
        self._db.execute("DELETE FROM names")


class _Transaction:
    """One write transaction; an error of SQLite becomes one of ours."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db, self._path = db, path
        self._outer = False

    def __enter__(self) -> None:
        self._outer = self._db.in_transaction
        if not self._outer:
            try:
                self._db.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise _translated(error, self._path) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._outer:
            return
        if kind is None:
            self.commit()
            return
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            raise _translated(error, self._path) from error

    def commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise _translated(error, self._path) from error


def reading_only(path: str) -> sqlite3.Connection:
    """A connection that writes nothing; raises ``sqlite3.Error`` where there is no database."""
    from urllib.parse import quote

    # Without a -wal nobody writes, and then only an immutable database can be read where one may not write.
    more = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
    return sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro{more}", uri=True, timeout=0.2)


def noted_in(path: str, key: str) -> Any:
    """What a journal that stands has noted under a key, without touching it; None if it cannot be read."""
    try:
        with Journal.reading(path) as journal:
            return journal.get(key)
    except (sqlite3.Error, ValueError):  # damaged, or none: it is looked at again when it is opened
        return None


def copy_journal(path: str, to: str) -> None:
    """Copy a journal without touching it; nothing is copied of one that is not there or cannot be read."""
    if not os.path.isfile(path):
        return
    source, target = reading_only(path), sqlite3.connect(to)
    try:
        source.backup(target)
    except sqlite3.DatabaseError:
        target.close()
        with suppress(FileNotFoundError):
            os.unlink(to)
    finally:
        source.close()
        target.close()


def _check(db: sqlite3.Connection) -> None:
    """Raise DatabaseError if pages are damaged, wherever (0.15 us a row), or what is read in every run."""
    db.execute("SELECT * FROM items LIMIT 1").fetchone()
    db.execute("SELECT * FROM meta LIMIT 1").fetchone()
    (told,) = db.execute("PRAGMA quick_check(1)").fetchone()
    try:
        for (text,) in db.execute("SELECT text FROM recipes"):
            json.loads(text).get("digests")
    except (ValueError, AttributeError) as error:
        told = str(error)
    if told != "ok":
        raise sqlite3.DatabaseError(f"malformed: {told}")


def _is_damage(error: sqlite3.Error) -> bool:
    return any(
        word in str(error) for word in ("malformed", "not a database", "no such table", "no such column", "disk image")
    )


def _translated(error: sqlite3.Error, path: str) -> Exception:
    if "locked" in str(error) or "busy" in str(error):
        return Temporary(f"the journal is in use: {path}", code="SF-324", path=path)
    if "full" in str(error):
        return Failed(f"no room for the journal: {path}", code="SF-304", path=path)
    return Failed(f"the journal cannot be used: {path}: {error}", code="SF-304", path=path)
