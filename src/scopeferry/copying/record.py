"""The record: one append-only JSON Lines file per generation, chained; the history of which the journal is the index.

A generation is an invocation that changed something. Its first line says who, what, how, and the SHA-256 of the generation
before; then one line an entry, as items settle; the last line says how it ended. Nothing is ever rewritten. A torn last line is
ignored; the next run ends it and closes the generation as ``cut off``.

`fold` is the one function that turns generations into the state of each path. It serves a lost journal, `verify` on another
machine and the three-way comparison. Records are untrusted: paths are checked as in a manifest.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from scopeferry.copying.manifest import check_path
from scopeferry.errors import UsageError
from scopeferry.kernel import journal as states
from scopeferry.kernel.digest import ALGORITHMS
from scopeferry.kernel.journal import Journal, Row
from scopeferry.logs import printable

FORMAT = "scopeferry-record"
VERSION = 1
STANDS = {"copied", "adopted", "replaced", "repaired", "checked"}  # actions after which the entry stands at the destination
MAX_LINE = 16 << 20

_NAME = re.compile(r"(\d{4,})\.jsonl")


def generations(folder: str) -> list[str]:
    """The record files of a record folder, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
    return [os.path.join(folder, name) for _, name in sorted(found)]


def sha256_of(path: str) -> str:
    """SHA-256 of a small file of ours."""
    import hashlib  # noqa: PLC0415

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_json(path: str) -> str:
    """The ``"path"`` member, or ``"path_b64"`` if the name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f'"path_b64": "{base64.b64encode(os.fsencode(path)).decode()}"'
    return f'"path": {quoted(path)}'


class Record:
    """The generation that is being written. The file appears with its first line; a run that changes nothing leaves none."""

    def __init__(self, folder: str, header: dict[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.path = ""
        self._file: Any = None
        self._lines: list[str] = []

    @property
    def begun(self) -> bool:
        """Is there anything in it?"""
        return self._file is not None or bool(self._lines)

    def add(self, line: str) -> None:
        """One entry, a JSON object on one line; it reaches the file with `flush`."""
        self._lines.append(line)

    def entry(self, path: str, kind: str, action: str, **more: Any) -> None:
        """One entry of a rarer kind; what is None is left out."""
        rest = "".join(f', "{key}": {json.dumps(value)}' for key, value in more.items() if value is not None)
        self.add(f'{{{path_json(path)}, "kind": "{kind}", "action": "{action}"{rest}}}')

    def flush(self) -> None:
        """Write what was added, and have it flushed: the journal follows."""
        if self._lines:
            if self._file is None:
                self._begin()
            self._file.write(("\n".join(self._lines) + "\n").encode())
            self._lines = []
            self._file.flush()
            os.fsync(self._file.fileno())

    def end(self, **facts: Any) -> None:
        """The last line. Nothing happens if there is no generation and none is asked for by `begun`."""
        if self.begun:
            self.add(json.dumps({"end": True, **facts}))
            self.flush()
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file as it is; twice is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        older = generations(self.folder)
        number = int(os.path.basename(older[-1]).split(".")[0]) + 1 if older else 1
        self.path = os.path.join(self.folder, f"{number:04}.jsonl")
        previous = {"name": os.path.basename(older[-1]), "sha256": sha256_of(older[-1])} if older else None
        head = {"format": FORMAT, "version": VERSION, "generation": number, "previous": previous, **self.header}
        self._file = open(self.path, "xb")  # noqa: SIM115
        self._file.write((json.dumps(head) + "\n").encode())


def end_cut_off(folder: str) -> str | None:
    """If the last generation has no end line, a killed run left it: end its torn line, close it. Its name, or None."""
    older = generations(folder)
    if not older:
        return None
    with open(older[-1], "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE))
        tail = file.read()
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        if tail.endswith(b"\n") and _is_end(last):
            return None
        file.seek(0, os.SEEK_END)
        torn = b"" if tail.endswith(b"\n") or not tail else b"\n"
        file.write(torn + json.dumps({"end": True, "state": "cut off", "exit_code": None}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return os.path.basename(older[-1])


def _is_end(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("end") is True


def lines(path: str) -> Iterator[dict[str, Any]]:
    """The objects of one generation, header and end line included.

    A line that does not parse is ignored if it is the last one, or the one before a "cut off" end; elsewhere it raises UsageError
    (SF-110) naming it.
    """
    torn: tuple[int, Exception] | None = None
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            try:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise TypeError("no object")  # noqa: TRY301
            except (ValueError, TypeError, RecursionError) as error:
                if torn is not None:
                    raise _bad(path, *torn)
                torn = number, error
                continue
            if torn is not None and found.get("state") != "cut off":
                raise _bad(path, *torn)
            if number == 1 and (found.get("format") != FORMAT or found.get("version") != VERSION):
                raise _bad(path, 1, ValueError("not a record of this version of scopeferry"))
            yield found


def _bad(path: str, number: int, error: Exception) -> UsageError:
    return UsageError(f"{printable(path)} line {number}: {error}", code="SF-110", path=path)


def entry_path(entry: dict[str, Any], path: str, number: int = 0) -> bytes:
    """The path of an entry, checked; raises UsageError (SF-110)."""
    try:
        raw = base64.b64decode(entry["path_b64"], validate=True) if "path_b64" in entry else os.fsencode(entry["path"])
        return check_path(raw) if entry.get("kind") != "folder" or raw else raw
    except (KeyError, ValueError, TypeError) as error:
        raise _bad(path, number, error if isinstance(error, ValueError) else ValueError("entry without a path")) from error


def check_chain(folder: str) -> list[str]:
    """What does not fit in the chain of generations: one sentence each."""
    problems = []
    before: str | None = None
    for path in generations(folder):
        name = os.path.basename(path)
        with open(path, "rb") as file:
            try:
                header = json.loads(file.readline(MAX_LINE))
                previous = header.get("previous")
            except (ValueError, AttributeError):
                problems.append(f"{name}: its first line is no header")
                before = path
                continue
        expected = {"name": os.path.basename(before), "sha256": sha256_of(before)} if before else None
        if previous != expected:
            problems.append(f"{name}: does not follow {os.path.basename(before) if before else 'nothing'} as it is now")
        before = path
    return problems


def headers(folder: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(first line, end line) of each generation, oldest first; the end is empty for one that has none."""
    for path in generations(folder):
        head: dict[str, Any] = {}
        end: dict[str, Any] = {}
        for number, line in enumerate(lines(path)):
            if number == 0:
                head = line
            elif line.get("end"):
                end = line
        yield head, end


def fold(folder: str, journal: Journal) -> int:
    """Replay all generations into a journal: a row DONE for each path that stands; the number of lines.

    Marks are unknown there (0), so a walk reads what the rows claim before it believes it. Mode, link target, xattrs and further
    digests become details: ``meta`` (JSON), ``as``, ``digest:ALGO``.
    """
    count = 0
    for path in generations(folder):
        working, recipe = "xxh128", 0
        batch = []
        for number, entry in enumerate(lines(path), 1):
            if number == 1:
                digests = [name for name in entry.get("digests", []) if name in ALGORITHMS] or ["xxh128"]
                working = digests[0]
                recipe = journal.recipe({"folded": True, "digests": digests})
                continue
            if entry.get("end"):
                continue
            count += 1
            batch.append(_folded(entry, entry_path(entry, path, number), working, recipe))
            if len(batch) >= 1000:  # noqa: PLR2004
                _apply(journal, batch)
                batch = []
        _apply(journal, batch)
    return count


def _folded(entry: dict[str, Any], path: bytes, working: str, recipe: int) -> tuple[bytes, str, Row, dict[str, Any]]:
    kinds = {"link": states.SYMLINK, "hardlink": states.HARDLINK}
    found = entry.get("digest") or {}
    digest = bytes.fromhex(found[working]) if working in found else None
    meta = {key: entry[key] for key in ("kind", "mode", "target", "xattrs", "mtime_ns", "read_back", "at") if key in entry}
    details: dict[str, Any] = {"meta": json.dumps(meta), "as": os.fsencode(entry["stored"]) if "stored" in entry else None}
    for name, hexed in found.items():
        if name != working and name in ALGORITHMS:
            details[f"digest:{name}"] = bytes.fromhex(hexed)
    if entry.get("leader"):
        details["leader"] = os.fsencode(entry["leader"])
    row = Row(path.rpartition(b"/")[2], kinds.get(str(entry.get("kind")), states.FILE), states.DONE, int(entry.get("size") or 0),
              int(entry.get("mtime_ns") or 0), 0, 0, None, digest, recipe)  # fmt: skip
    return path, str(entry.get("action")), row, details


def _apply(journal: Journal, batch: list[tuple[bytes, str, Row, dict[str, Any]]]) -> None:
    rows = []
    for path, action, row, details in batch:
        if action not in STANDS:
            continue
        head = path.rpartition(b"/")[0]
        if json.loads(details["meta"]).get("kind") == "folder":
            meta = json.loads(details["meta"])
            journal.plan(path + b"/" if path else b"", (), mode=meta.get("mode"), mtime_ns=meta.get("mtime_ns"))
            continue
        rows.append((head + b"/" if head else b"", row, details))
    journal.commit()
    journal.settle(rows)
