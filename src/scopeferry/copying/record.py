"""The record: one append-only JSON Lines file per generation, chained; the history of which the journal is the index.

A generation is an invocation that changed something. Its first line says who, what, how, and the SHA-256 of the
generation before; then one line an entry, as items settle; the last line says how it ended. Nothing is ever rewritten.
A torn last line is ignored; the next run ends it and closes the generation as ``cut off``.

`fold` is the one function that turns generations into the state of each path. It serves a lost journal, `verify` on
another machine and the three-way comparison. Records are untrusted: paths are checked as in a manifest.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from binascii import a2b_base64, b2a_base64
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby, islice
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

from scopeferry.config import KEEP_DEFAULT
from scopeferry.copying import place, underway
from scopeferry.copying.manifest import Replacement, check_path, guarded
from scopeferry.errors import CODES, UsageError
from scopeferry.kernel import journal as states
from scopeferry.kernel.digest import ALGORITHMS, DEFAULT, SEAL, seal
from scopeferry.kernel.journal import Journal, Row
from scopeferry.kernel.publish import system
from scopeferry.logs import command_line, host, printable, user

RESERVE, RESERVE_BYTES = ".sf-reserve", 1 << 20
FORMAT = "scopeferry-record"
VERSION = 1
STANDS = {
    "copied",
    "adopted",
    "replaced",
    "repaired",
    "checked",
}  # actions after which the entry stands at the destination
MAX_LINE = 16 << 20
TAIL = 64 << 10  # an end line is shorter
CUT_OFF = "cut off"

_NAME = re.compile(r"(\d{4,})\.jsonl")


def generations(folder: str) -> list[str]:
    """The record files of a record folder, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
    return [os.path.join(folder, name) for _, name in sorted(found)]


def number_of(path: str) -> int:
    """The number of a generation, from the name of its file."""
    match = _NAME.fullmatch(os.path.basename(path))
    return int(match[1]) if match else 0


def open_ours(path: str, mode: str = "rb") -> Any:
    """Open a regular file of a record folder, never through a link and never waiting for a FIFO; raises OSError."""
    return open(path, mode, opener=guarded)


def sha256_of(path: str) -> str:
    """SHA-256 of a file of ours."""
    with open_ours(path) as file:
        return seal(file)


def path_json(path: str) -> str:
    """The ``"path"`` member, or ``"path_b64"`` if the name is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f'"path_b64": "{b2a_base64(os.fsencode(path), newline=False).decode()}"'
    return f'"path": {quoted(path)}'


SKIPPED = "skipped"
GIVEN = "given"  # the detail of an item: the names of the extended attributes that its copy was given


def given_names(names: Iterable[str]) -> bytes | None:
    """The value of that detail; None if there are none."""
    return b"\0".join(map(os.fsencode, names)) or None


def names_given(value: bytes | None) -> frozenset[str]:
    """What that value says."""
    return frozenset(map(os.fsdecode, value.split(b"\0"))) if value else frozenset()


def xattrs_json(xattrs: Mapping[str, bytes]) -> dict[str, str] | None:
    """The value of ``"xattrs"``: name -> base64; None if there are none."""
    return {name: b2a_base64(value, newline=False).decode() for name, value in xattrs.items()} or None


class Record:
    """The generation that is being written. The file appears with its first line; a run that changes nothing leaves
    none.
    """

    def __init__(self, folder: str, header: dict[str, Any], on_begin: Callable[[int], Any] | None = None) -> None:
        self.folder, self.header, self.on_begin = folder, header, on_begin
        self.path = ""
        self._head: dict[str, Any] = {}
        self._first = ""  # where it is written before it is sent to `path`, if not there
        self._folder: Any = (
            None  # its folder, opened before the first byte: another disk may have taken its place since
        )
        self._file: Any = None
        self._lines: list[str] = []
        self._holds = False

    @property
    def begun(self) -> bool:
        """Is there anything in it?"""
        return self._file is not None or bool(self._lines)

    def add(self, line: str) -> None:
        """One entry, a JSON object on one line; it reaches the file with `flush`."""
        self._lines.append(line)

    def entry(self, path: str, kind: str, action: str | None, **more: Any) -> None:
        """One entry of a rarer kind; what is None is left out."""
        facts = {"action": action, **more}
        rest = "".join(f', "{key}": {json.dumps(value)}' for key, value in facts.items() if value is not None)
        self.add(f'{{{path_json(path)}, "kind": "{kind}"{rest}}}')

    def flush(self) -> None:
        """Write what was added, and have it flushed: the journal follows."""
        if self._lines and self._file is None:
            self._begin()
        if self._lines:
            data = ("\n".join(self._lines) + "\n").encode()
            try:
                self._write(data)
            except OSError:
                if not self.give_up_room():
                    raise
                self._write(data)
            self._lines = []

    def _write(self, data: bytes) -> None:
        """Write and flush; what did not arrive whole (a full disk) is taken back, and can be written again."""
        fd = self._file.fileno()
        size = os.fstat(fd).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            self._file.seek(size)
            raise

    def hold_room(self) -> None:
        """Take room until `close`, to be given up when the disk is full: what was published is still written down."""
        self._holds = True  # a killed run may have left it
        self.give_up_room()
        if self._first:  # it is written on another disk
            return
        self._holds = True
        with suppress(OSError, AttributeError):
            fd = os.open(os.path.join(self.folder, RESERVE), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)

    def give_up_room(self) -> bool:
        """Free that room; False if there was none."""
        if not self._holds:
            return False
        self._holds = False
        try:
            os.unlink(os.path.join(self.folder, RESERVE))
        except OSError:
            return False
        return True

    def begin(self) -> None:
        """Begin the generation though it has no entries yet, and have it flushed."""
        if self._file is None:
            self._begin()
            self.flush()

    def end(self, **facts: Any) -> None:
        """The last line. Nothing happens if there is no generation and none is asked for by `begun`."""
        if self.begun:
            self.add(json.dumps({"end": True, **facts}))
            self.flush()
            self._close()

    def close(self) -> None:
        """Close the file as it is; twice is harmless. What cannot be sent now is sent by the next run."""
        with suppress(OSError):
            self._close()

    def leave(self, **facts: Any) -> None:
        """As `end`, where its folder is gone: nothing is written there. The next run ends it, or sends it."""
        if self._first and self._file is not None:
            self.add(json.dumps({"end": True, **facts}))
            self.flush()
        file, self._file, self._lines, self._holds = self._file, None, [], False
        with suppress(OSError):
            self._close_folder()
            if file is not None:
                file.close()

    def _close_folder(self) -> None:
        if self._folder is not None:
            folder, self._folder = self._folder, None
            system.close_folder(folder)

    def _close(self) -> None:
        self.give_up_room()
        self._close_folder()
        if self._file is not None:
            file, self._file = self._file, None
            file.close()
            if self._first:
                (self.path,) = underway.send(self.folder, [os.path.basename(self.path)])

    def prepare(self) -> None:
        """Look at the generations before this one, which may lie on a mount that is gone later. Twice is harmless."""
        if self._head:
            return
        older = generations(self.folder)
        number = number_of(older[-1]) + 1 if older else 1
        previous = {"name": os.path.basename(older[-1]), SEAL: sha256_of(older[-1])} if older else None
        self._head = {"format": FORMAT, "version": VERSION, "generation": number, "previous": previous, **self.header}
        self._first = underway.folder_for(self.folder)
        self._folder = system.open_root(self.folder) if not self._first else None

    def _begin(self) -> None:
        self.prepare()
        number = self._head["generation"]
        name = f"{number:04}.jsonl"
        self.path = os.path.join(self.folder, name)
        if self._first:
            place.make_private(self._first)
            self._file = open(os.path.join(self._first, name), "xb", buffering=0)  # noqa: SIM115
        else:
            self._file = os.fdopen(system.create_shared(self._folder, name), "wb", buffering=0)
        self._lines.insert(0, json.dumps(self._head))
        if self.on_begin is not None:
            self.on_begin(number)


def header(
    job: str,
    run: str,
    source: str | None,
    destination: str,
    digests: Sequence[str],
    *,
    verify: str = "full",
    keep: Iterable[str] = (*KEEP_DEFAULT, "owner"),
    select: Sequence[tuple[str, str]] = (),
    **more: Any,
) -> dict[str, Any]:
    """The first line of a generation. Lines of other jobs than a copy hold modes as they were recorded: all is kept."""
    from scopeferry import __version__

    return {
        "run": run,
        "job": job,
        "tool": f"scopeferry {__version__}",
        "command": command_line("scopeferry", job, *([source] if source else []), destination),
        "host": host(),
        "user": user(),
        "system": sys.platform,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "sources": [] if source is None else [source],
        "destination": destination,
        "digests": list(digests),
        "verify": verify,
        "keep": sorted(keep),
        "include": [glob for kind, glob in select if kind == "include"],
        "exclude": [glob for kind, glob in select if kind == "exclude"],
        "select": [list(rule) for rule in select],
        "profile": None,
        **more,
    }


def action_after(code: str) -> str:
    """The action of an entry that was not copied, by the code of its problem."""
    if CODES[code][0] == 0:
        return "skipped"
    if code.startswith("SF-5"):
        return "conflict"
    return {"SF-201": "changed", "SF-601": "changed", "SF-202": "vanished"}.get(code, "failed")


def sweep(folder: str) -> None:
    """Remove what a killed run left half-written: manifests and receipts that never got their names."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            if name.endswith(".part") and name.startswith(("manifest.", "receipt.")):
                with suppress(OSError):
                    os.unlink(os.path.join(folder, name))


def end_cut_off(folder: str) -> str | None:
    """If the last generation has no end line, a killed run left it: end its torn line, close it. Its name, or None.

    So is one that was to be sent to this folder.
    """
    if left := generations(underway.place_of(folder)):
        end_cut_off(os.path.dirname(left[-1]))
        underway.send(folder, [os.path.basename(path) for path in left])
    older = generations(folder)
    if not older:
        return None
    if underway.folder_for(folder):
        return _replace_cut_off(older[-1])
    with open_ours(older[-1], "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        last = tail.rstrip(b"\n").rpartition(b"\n")[2]
        if tail.endswith(b"\n") and _is_end(last):
            return None
        file.seek(0, os.SEEK_END)
        torn = b"" if tail.endswith(b"\n") or not tail else b"\n"
        file.write(torn + json.dumps({"end": True, "state": CUT_OFF, "exit_code": None}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return os.path.basename(older[-1])


def _replace_cut_off(path: str) -> str | None:
    """The same where nothing can be appended: written whole, under its name when it is."""
    if _end_of(path):
        return None
    with open_ours(path) as file:
        data = file.read()
    torn = b"" if data.endswith(b"\n") or not data else b"\n"
    with Replacement(path) as file:
        file.write(data + torn + json.dumps({"end": True, "state": CUT_OFF, "exit_code": None}).encode() + b"\n")
    return os.path.basename(path)


def _is_end(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("end") is True


def last_end(folder: str) -> dict[str, Any]:
    """The last line of the last generation; empty if there is none, or if it was cut off."""
    return next((end for _, end in ends(folder, 1)), {})


def ends(folder: str, newest: int) -> list[tuple[str, dict[str, Any]]]:
    """(name, last line) of the newest generations, oldest first; the line is empty where that is no end line."""
    return [(os.path.basename(path), _end_of(path)) for path in generations(folder)[-newest:]]


def _end_of(path: str) -> dict[str, Any]:
    """The last line of a generation, if it is an end line; else nothing."""
    with open_ours(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    return dict(json.loads(last)) if _is_end(last) else {}


# -- reading -----------------------------------------------------------------------------------------------------------


def numbered(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of one generation, header and end line included.

    A line that does not parse is ignored if it is the last one, or the one before a "cut off" end; elsewhere it raises
    UsageError (SF-110) naming it.
    """
    torn: tuple[int, Exception] | None = None
    try:
        with open_ours(path) as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                try:
                    found = json.loads(line)
                    if not isinstance(found, dict):
                        raise TypeError("no object")
                except (ValueError, TypeError, RecursionError) as error:
                    if torn is not None:
                        raise _bad(path, *torn) from None
                    torn = number, error
                    continue
                if torn is not None and found.get("state") != CUT_OFF:
                    raise _bad(path, *torn)
                if number == 1 and not _is_header(found) and found.get("state") != CUT_OFF:
                    raise _bad(path, 1, ValueError("not a record of this version of scopeferry"))
                yield number, found
    except OSError as error:
        raise UsageError(f"cannot read {printable(path)}: {error.strerror}", code="SF-110", path=path) from error


def _is_header(found: dict[str, Any]) -> bool:
    return found.get("format") == FORMAT and found.get("version") == VERSION


def lines(path: str) -> Iterator[dict[str, Any]]:
    """The objects of one generation; see `numbered`."""
    return (found for _, found in numbered(path))


def _bad(path: str, number: int, error: Exception) -> UsageError:
    reason = str(error) if isinstance(error, ValueError | TypeError) else type(error).__name__
    return UsageError(f"{printable(path)} line {number}: {printable(reason)}", code="SF-110", path=path)


def check_chain(folder: str) -> list[str]:
    """What does not fit in the chain of generations: one sentence each."""
    problems = []
    before: str | None = None
    every = generations(folder)
    for path in every:
        name = os.path.basename(path)
        try:
            first = next((found for _, found in numbered(path)), None)
            expected = {"name": os.path.basename(before), SEAL: sha256_of(before)} if before else None
        except (UsageError, OSError) as error:
            problems.append(f"{name}: {error}")
        else:
            if first is None and path != every[-1]:
                problems.append(f"{name}: its first line is no header")
            elif first is not None and _is_header(first) and first.get("previous") != expected:
                after = os.path.basename(before) if before else "nothing"
                problems.append(f"{name}: does not follow {after} as it is now")
        before = path
    return problems


def headers(folder: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(first line, end line) of each generation, oldest first; the end is empty for one that has none.

    A generation that was killed before its first line was whole says nothing of any run: it is left out.
    """
    for path in generations(folder):
        first = next(lines(path), {})
        if _is_header(first):
            yield first, _end_of(path)


def destination_here(folder: str) -> str:
    """The copy of this machine that the last generation of a record folder is about; empty if it is of another one."""
    for head, _ in deque(headers(folder), maxlen=1):
        found = head.get("destination") if head.get("host") == host() else None
        return found if isinstance(found, str) else ""
    return ""


class Standing(NamedTuple):
    """What one line says of one path. ``path`` is that at the source, ``stored`` that at the destination.

    ``size`` is in bytes. ``mtime_ns``, ``mode``, ``xattrs`` and ``target`` are None where they were not kept;
    ``source_mtime_ns`` is always that of the source. ``digests`` maps an algorithm to its raw digest.
    """

    path: bytes
    stored: bytes
    kind: int
    action: str
    size: int
    source_mtime_ns: int
    mtime_ns: int | None
    mode: int | None
    target: str | None
    xattrs: dict[str, str] | None
    digests: dict[str, bytes]
    read_back: str
    at: float
    leader: bytes | None
    working: str


FOLDER = 9  # a kind beside those of the journal
_KINDS = {"file": states.FILE, "link": states.SYMLINK, "hardlink": states.HARDLINK, "folder": FOLDER}


def replay(folder: str, after: int = 0) -> Iterator[tuple[dict[str, Any], Standing]]:
    """(header, entry) of all lines of all generations beyond number `after`, oldest first.

    This is the one reader of what generations say of paths; what they are folded into is the caller's. Raises
    UsageError (SF-110) naming the line for what no scopeferry wrote.
    """
    for path in generations(folder):
        if number_of(path) <= after:
            continue
        header: dict[str, Any] = {}
        working, keep = DEFAULT, frozenset(KEEP_DEFAULT)
        for number, entry in numbered(path):
            if entry.get("end") is True:
                continue
            try:
                if number == 1:
                    header = entry
                    working, keep = _working(entry), _keeps(entry)
                    continue
                yield header, _standing(entry, working, keep)
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise _bad(
                    path, number, error if not isinstance(error, KeyError) else ValueError(f"no {error}")
                ) from error


def _working(header: dict[str, Any]) -> str:
    names = header.get("digests") or []
    if not isinstance(names, list):
        raise ValueError("digests is no list")
    return next((name for name in names if isinstance(name, str) and name in ALGORITHMS), DEFAULT)


def _keeps(header: dict[str, Any]) -> frozenset[str]:
    keep = header.get("keep")
    if keep is None:
        return frozenset(KEEP_DEFAULT)
    if not isinstance(keep, list) or not all(isinstance(kind, str) for kind in keep):
        raise ValueError("keep is no list of names")
    return frozenset(keep)


def _lost_time(lost: Sequence[Any]) -> bool:
    """Could the destination not hold the whole time?"""
    return any(kind == "times" or str(kind).startswith("mtime below") for kind in lost)


def _standing(entry: dict[str, Any], working: str, keep: frozenset[str]) -> Standing:
    kind = _KINDS.get(_text(entry, "kind") or "file", states.FILE)
    path = _path(entry, "path", root=kind == FOLDER)
    stored = _path(entry, "stored", root=kind == FOLDER) if "stored" in entry or "stored_b64" in entry else path
    lost = entry.get("lost") or ()
    if not isinstance(lost, list | tuple):
        raise ValueError("lost is no list")
    mtime_ns = _number(entry, "mtime_ns")
    mode = _number(entry, "mode", 0, 0o7777) if "mode" in keep and "mode" not in lost else None
    if mode is not None and "owner" not in keep:
        mode &= 0o1777
    return Standing(
        path, stored, kind, _text(entry, "action") or "", _number(entry, "size", 0) or 0, mtime_ns or 0,
        mtime_ns if "times" in keep and not _lost_time(lost) else None, mode, _target(entry),
        _xattrs(entry) if "xattrs" not in lost and "acl" not in lost else None, _digests(entry),
        _text(entry, "read_back") or "no", _time(entry), _path(entry, "leader") if "leader" in entry else None, working,
    )  # fmt: skip


def _path(entry: dict[str, Any], key: str, *, root: bool = False) -> bytes:
    if f"{key}_b64" in entry:
        raw = a2b_base64(entry[f"{key}_b64"], strict_mode=True)
    else:
        raw = os.fsencode(entry[key])
    return raw if root and not raw else check_path(raw)


def _text(entry: dict[str, Any], key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is no text")
    return value


def _number(entry: dict[str, Any], key: str, least: int = -(1 << 63), most: int = (1 << 63) - 1) -> int | None:
    value = entry.get(key)
    if value is not None and (type(value) is not int or not least <= value <= most):
        raise ValueError(f"{key} is no number from {least} to {most}")
    return value


def _time(entry: dict[str, Any]) -> float:
    value = entry.get("at", 0)
    if type(value) not in {int, float} or not 0 <= value < 1e12:
        raise ValueError("at is no time")
    return float(value)


def _target(entry: dict[str, Any]) -> str | None:
    target = _text(entry, "target")
    if target is not None and (not target or b"\0" in os.fsencode(target)):
        raise ValueError("target is empty or has a NUL in it")
    return target


def _xattrs(entry: dict[str, Any]) -> dict[str, str] | None:
    found = entry.get("xattrs")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ValueError("xattrs is no object")
    for name, value in found.items():
        if b"\0" in os.fsencode(name) or not isinstance(value, str):
            raise ValueError("xattrs has a NUL or no text in it")
        a2b_base64(value, strict_mode=True)
    return found


def _digests(entry: dict[str, Any]) -> dict[str, bytes]:
    found = entry.get("digest") or {}
    if not isinstance(found, dict):
        raise ValueError("digest is no object")
    digests = {}
    for name, hexed in found.items():
        if name in ALGORITHMS:
            if not isinstance(hexed, str) or len(hexed) != 2 * ALGORITHMS[name][2]:
                raise ValueError(f"digest has not the length of {name}")
            digests[name] = bytes.fromhex(hexed)
    return digests


# -- folded into a journal ---------------------------------------------------------------------------------------------


def fold(
    folder: str,
    journal: Journal,
    after: int = 0,
    *,
    whole: bool = False,
    between: Callable[[], object] = lambda: None,
) -> int:
    """Replay generations into a journal: a row DONE for each path that stands; the number of lines.

    Marks are unknown there (0), so a walk reads what the rows claim before it believes it. Name at the destination,
    leader of a hard link and further digests become details: ``as``, ``leader``, ``digest:ALGO``. If asked for the
    ``whole``, so does what was kept of each entry (``mode``, ``time``, ``target``, ``xattrs``), when it was proved
    (``proved``) and that it was ``freed`` at its source, and folders have rows like any other entry; links that were
    ``skipped`` have that detail and no row. ``between`` is called now and then, and may raise.
    """
    count = 0
    details = {f"digest:{name}" for name in journal.manifest_algorithms()} if after else set()
    details |= {"as"} if journal.has_detail("as") else set()
    for gone, group in groupby(replay(folder, after), lambda one: one[1].action == "freed"):
        while chunk := list(islice(group, 1000)):
            between()
            if gone:
                _free(journal, chunk, details if whole else None)
                continue
            standing = [entry for _, entry in chunk if entry.action in STANDS]
            count += len(standing)
            if whole:
                _note_skipped(journal, chunk)
            _apply(journal, standing, details, whole=whole)
    older = generations(folder)
    if older:
        journal.set(generation=number_of(older[-1]))
    return count


def _note_skipped(journal: Journal, chunk: list[tuple[dict[str, Any], Standing]]) -> None:
    """The symbolic links that the copy does not have, for it could not or was not to hold any."""
    for _, entry in chunk:
        if entry.action == "skipped" and entry.kind == states.SYMLINK:
            head, name = split(entry.path)
            journal.plan(head, ())
            journal.note(SKIPPED, [(head, name, 1)])


def catch_up(folder: str, journal: Journal) -> int:
    """Fold what other machines have written since this journal last looked; the number of lines. None was noted:
    nothing.
    """
    noted = journal.get("generation")
    older = generations(folder)
    if noted is None or not older or number_of(older[-1]) <= noted:
        return 0
    return fold(folder, journal, int(noted))


def is_freed_here(header: dict[str, Any], entry: Standing) -> bool:
    """Does this line say that what stood at the folder of this very record is gone (and not at its source)?"""
    return entry.action == "freed" and header.get("destination") in (header.get("sources") or ())


def split(path: bytes) -> tuple[bytes, bytes]:
    """(folder with its slash, name) of a path."""
    at = path.rfind(b"/") + 1
    return path[:at], path[at:]


def _free(journal: Journal, chunk: list[tuple[dict[str, Any], Standing]], details: set[str] | None) -> None:
    """What a record's own folder has lost stands no more; what its source has lost is noted, if `details` are kept."""
    for header, entry in chunk:
        head, name = split(entry.path)
        if is_freed_here(header, entry):
            journal.forget(head, [name])
    journal.commit()
    if details is not None:
        journal.note("freed", [(*split(entry.path), 1) for header, entry in chunk if not is_freed_here(header, entry)])
        details.add("freed")


def _apply(journal: Journal, batch: list[Standing], known: set[str], *, whole: bool) -> None:
    """Write a batch; `known` collects the kinds of details that there are: what a line is silent about has gone, but
    what was only checked keeps it. Mode and attributes of a hard link stand in the line of the name that it follows.
    """
    rows: list[tuple[bytes, Row, dict[str, Any]]] = []
    recipes = {name: journal.recipe({"folded": True, "digests": [name]}) for name in {one.working for one in batch}}
    for entry in batch:
        head, name = split(entry.path)
        if entry.kind == FOLDER and not whole:
            prefix = entry.path + b"/" if entry.path else b""
            journal.plan(prefix, (), mode=entry.mode, mtime_ns=entry.source_mtime_ns)
            journal.note(GIVEN, [(prefix, b"", given_names(entry.xattrs or ()))])
            if entry.stored != entry.path:
                journal.plan(head, ())
                journal.note("as", [(head, name, entry.stored)])
            continue
        said: dict[str, Any] = {
            f"digest:{name}": found for name, found in entry.digests.items() if name != entry.working
        }
        said |= {"as": entry.stored} if entry.stored != entry.path else {}
        said |= {"leader": entry.leader} if entry.leader is not None else {}
        if whole:
            said |= _kept(entry)
        elif entry.xattrs:
            said[GIVEN] = given_names(entry.xattrs)
        silent = known
        if entry.action == "checked":
            of_leader = {"mode", "xattrs"} if entry.kind == states.HARDLINK else set()
            silent = known & ({"as", f"digest:{entry.working}"} | of_leader)
        known |= said.keys()
        digest = entry.digests.get(entry.working)  # None for a link
        row = Row(
            name, entry.kind, states.DONE, entry.size, entry.source_mtime_ns, 0, 0, None, digest, recipes[entry.working]
        )
        rows.append((head, row, {**dict.fromkeys(silent), **said}))
    journal.commit()
    journal.settle(rows)


def _kept(entry: Standing) -> dict[str, Any]:
    """What was kept of an entry, as details."""
    found = {
        "mode": entry.mode, "time": entry.mtime_ns, "proved": entry.at if entry.read_back != "no" else None,
        "target": None if entry.target is None else os.fsencode(entry.target),
        "xattrs": json.dumps(entry.xattrs, sort_keys=True) if entry.xattrs else None,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}
