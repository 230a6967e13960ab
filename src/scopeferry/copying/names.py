"""Names that the destination cannot hold, or takes for one another: asked of the destination itself, once a run.

File systems that take any name are not asked. Elsewhere a few names are made, looked for and removed in a folder of
ours, in the record folder where that lies on the same file system. What was found are `Rules`, plain values. `Names`
applies them to the tree that is copied: it refuses a name (SF-207), refuses the later of two twins (SF-208), or, with
``--names percent``, gives the name another form in which what cannot stay is ``%XX``, as in a URL. A ``%`` before two
hex digits is written ``%25`` then, so that decoding gives back the name, and no two names become one.

>>> Rules(forbidden="?:", reserved=True).encoded("a?b 50% %41"), Rules(reserved=True).encoded("con.txt")
('a%3Fb 50% %2541', 'co%6E.txt')
>>> names = Names(Rules(case=True), percent=True)
>>> names.enter("", ["Image.tif", "image.tif"])
{'image.tif': '%69mage.tif'}
>>> names.full("image.tif"), names.full("Image.tif")
('%69mage.tif', 'Image.tif')
"""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from scopeferry.errors import ItemError, ScopeferryError
from scopeferry.kernel import publish
from scopeferry.kernel.publish import Disk, Folders, system
from scopeferry.logs import printable
from scopeferry.stores.files import TIME_STEPS_NS

SUSPECTS = '<>:"\\|?*\x01\n'
ENDINGS = " ."
LONGEST = 255
PAUSES_S = (0.2, 1.0)  # before a question is asked again that a server did not answer
#: What some file systems take for one name, by the field of `Rules` that says so.
ALIKE = {
    "case": ("casea", "CASEA"),
    "wide_case": ("wide\u00e9", "wide\u00c9"),
    "full_case": ("full\u00df", "fullss"),
    "forms": ("form\u00e9", "forme\u0301"),
}
ASKED_NS = 1_700_000_001_987_654_321  # an odd second with all nine digits

_RESERVED = re.compile(r"(CON(?:IN\$|OUT\$)?|PRN|AUX|NUL|(?:COM|LPT)[0-9\u00b9\u00b2\u00b3])(?=[ .]|$)", re.IGNORECASE)
_ESCAPE = re.compile("%(?=[0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Rules:
    """What a destination does with names, and what it holds of times and modes; the defaults take anything.

    ``case``: A and a are one name; ``wide_case``: other letters too; ``full_case``: \u00df and ss too. ``forms``:
    composed and decomposed letters are one name. ``forbidden``: characters; ``endings``: last characters. ``reserved``:
    CON, NUL and their kind are devices. ``only``: ``""`` any bytes, ``"utf-8"``, ``"bmp"`` (characters of 16 bits),
    ``"ascii"``. ``longest``: in UTF-16 units if ``units``, else in bytes. ``lacks``: mode, links, hardlinks.
    ``hides``: a mount tells names apart for which the server behind it has one file.
    """

    case: bool = False
    wide_case: bool = False
    full_case: bool = False
    forms: bool = False
    forbidden: str = ""
    endings: str = ""
    reserved: bool = False
    only: str = ""
    longest: int = LONGEST
    units: bool = False
    mtime_step_ns: int = 1
    lacks: frozenset[str] = frozenset()
    hides: bool = False

    @property
    def any_name(self) -> bool:
        """Is there nothing to say about names?"""
        return replace(self, units=False, mtime_step_ns=1, lacks=frozenset()) == Rules()

    def key(self, name: str) -> str:
        """What all names have in common that the destination takes for this one."""
        if self.forms:
            name = unicodedata.normalize("NFC", name)
        if self.full_case:
            name = name.casefold()
        elif self.wide_case:
            name = "".join(upper if len(upper := char.upper()) == 1 else char for char in name)
        elif self.case:
            name = "".join(char.upper() if char.isascii() else char for char in name)
        return unicodedata.normalize("NFC", name) if self.forms else name

    def problem(self, name: str) -> str:
        """Why the destination cannot hold this name, or nothing."""
        bad = [char for char in name if self._refuses(char)]
        if bad:
            return f"no name may hold {', '.join(dict.fromkeys(printable(char) or repr(char) for char in bad))}"
        if name[-1:] and name[-1] in self.endings:
            return f"no name may end with {name[-1]!r}"
        if self.reserved and _RESERVED.match(name):
            return f"{_RESERVED.match(name)[1]} is the name of a device"  # type: ignore[index]
        if self.length(name) > self.longest:
            return f"no name may be longer than {self.longest}"
        return ""

    def length(self, name: str) -> int:
        """The length that counts: UTF-16 units, or bytes."""
        return len(name.encode("utf-16-le", "surrogatepass")) // 2 if self.units else len(os.fsencode(name))

    def encoded(self, name: str, *, whole: bool = False) -> str:
        """The form in which the destination holds it. `whole`: nothing that could fold is left as it is, either."""
        out = [self._escaped(char, at, name, whole=whole) for at, char in enumerate(name)]
        if name[-1:] and name[-1] in self.endings:
            out[-1] = _percent(name[-1])
        if self.reserved and (match := _RESERVED.match(name)):
            out[match.end() - 1] = _percent(name[match.end() - 1])
        if whole and "".join(out) == self.encoded(name):
            at = next((at for at, char in enumerate(name) if out[at] == char), 0)
            out[at] = _percent(name[at])
        return "".join(out)

    def _escaped(self, char: str, at: int, name: str, *, whole: bool) -> str:
        folds = whole and (not char.isascii() or char.isupper())
        if folds or self._refuses(char) or (char == "%" and _ESCAPE.match(name, at)):
            return _percent(char)
        return char

    def _refuses(self, char: str) -> bool:
        if char.isascii():
            return char in self.forbidden or (char < " " and "\x01" in self.forbidden)
        if self.only == "ascii":
            return True
        return bool(self.only) and ("\ud800" <= char <= "\udfff" or (self.only == "bmp" and char > "\uffff"))


def _percent(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in os.fsencode(char))


class Names:
    """The names of a tree at a destination with these rules; picklable, and safe to read from several threads.

    `enter` decides the twins of one folder from its whole listing. But for those all is a pure function of a path.
    """

    def __init__(self, rules: Rules, *, percent: bool = False) -> None:
        self.rules, self.percent = rules, percent
        self._decided: dict[str, dict[str, str]] = {}  # folder -> name of a twin -> its stored name
        self._refused: dict[str, dict[str, str]] = {}  # folder -> name of a twin -> the name that stands in its way
        self._first: dict[str, str] = {}
        self._told: set[str] = set()

    def name(self, folder: str, name: str) -> str:
        """The stored name of an entry; raises ItemError, SF-207 or SF-208."""
        path = f"{folder}/{name}" if folder else name
        if (stored := self._decided.get(folder, {}).get(name)) is not None:
            return self._fitting(stored, path)
        if (other := self._refused.get(folder, {}).get(name)) is not None:
            message = f"the destination cannot tell this name from {printable(other)}: {printable(path)}"
            raise ItemError(message, code="SF-208", path=path)
        return self._fitting(self.rules.encoded(name) if self.percent else name, path)

    def path(self, path: str) -> str:
        """The stored path of a folder; raises ItemError."""
        if not path:
            return path
        head, _, name = path.rpartition("/")
        return self._below(head) + self.name(head, name)

    def full(self, key: str) -> str:
        """The stored path of an item; raises ItemError."""
        head, _, name = key.rpartition("/")
        return self._below(head) + self.name(head, name)

    def is_news(self, path: str) -> bool:
        """Is this the first time in this run that this folder is said to have failed?"""
        known = path in self._told
        self._told.add(path)
        return not known

    def is_stored(self, prefix: bytes, name: str) -> bool:
        """Is this a name of ours at the destination, for an entry of a source folder with another name?"""
        origin = decoded(name) if self.percent else name
        decided = self._decided.get(os.fsdecode(prefix.rstrip(b"/")), {}).get(origin)
        stored = decided or (self.rules.encoded(origin) if self.percent else origin)
        alike = self.rules.key
        return (origin != name and alike(stored) == alike(name)) or self._first.get(alike(name), name) != name

    def enter(
        self,
        path: str,
        names: Iterable[str],
        held: Mapping[str, str] | None = None,
        stands: Callable[[str], bool] | None = None,
    ) -> dict[str, str]:
        """Decide the twins among all names of a folder; the stored names of those that get another one.

        `held`: the stored name of each entry that has another one already. `stands`: does this entry of ours stand
        there? What stands keeps its name; of the others the first in order.
        """
        held = held or {}
        groups: dict[str, list[str]] = {}
        self._first = {}
        rules = self.rules
        for name in names:
            pure = rules.encoded(name) if self.percent else name
            if name in held or not rules.problem(pure):
                groups.setdefault(rules.key(pure), []).append(name)
                if rules.forms or rules.case:
                    self._first.setdefault(rules.key(pure), name)
        return self.decide(path, (one for one in groups.values() if len(one) > 1 or one[0] in held), held, stands)

    def decide(
        self, path: str, groups: Iterable[Sequence[str]], held: Mapping[str, str], stands: Callable[[str], bool] | None
    ) -> dict[str, str]:
        """As `enter`, of the groups of names that the destination would take for one."""
        found: dict[str, str] = {}
        refused: dict[str, str] = {}
        for group in groups:
            taken: dict[str, str] = {}
            for name in sorted(group, key=lambda one: (not (stands is not None and stands(one)), os.fsencode(one))):
                stored = self._choice(name, held, taken)
                if stored is None:
                    refused[name] = next(iter(taken.values()))
                    continue
                taken[self.rules.key(stored)] = name
                if stored != (self.rules.encoded(name) if self.percent else name):
                    found[name] = stored
        for decisions, new in ((self._decided, found), (self._refused, refused)):
            decisions.pop(path, None)
            if new:
                decisions[path] = new
        return found

    def _choice(self, name: str, held: Mapping[str, str], taken: Mapping[str, str]) -> str | None:
        """The stored name of a twin, after those that come before it; None: there is none."""
        choices = [held[name]] if name in held else []
        choices.append(self.rules.encoded(name) if self.percent else name)
        if self.percent:
            choices.append(self.rules.encoded(name, whole=True))
        return next((choice for choice in choices if self.rules.key(choice) not in taken), None)

    def key(self, name: str) -> str | None:
        """What names have in common that the destination takes for one; None: it cannot hold this one."""
        pure = self.rules.encoded(name) if self.percent else name
        return None if self.rules.problem(pure) else self.rules.key(pure)

    def _below(self, folder: str) -> str:
        return f"{self.path(folder)}/" if folder else ""

    def _fitting(self, stored: str, path: str) -> str:
        problem = self.rules.problem(stored)
        if problem:
            hint = "" if not self.percent else "rename it at the source"
            message = f"the destination cannot hold this name: {printable(path)}: {problem}"
            raise ItemError(message, code="SF-207", path=path, hint=hint)
        return stored


def decoded(name: str) -> str:
    """What was encoded.

    >>> decoded("a%3Fb 50% %2541")
    'a?b 50% %41'
    """
    raw = re.sub(b"%([0-9A-Fa-f]{2})", lambda found: bytes((int(found[1], 16),)), os.fsencode(name))
    return os.fsdecode(raw)


# -- what the destination does -----------------------------------------------------------------------------------------


def rules_of(root: str, disk: Disk, records: str, *, ask: bool = True) -> Rules:
    """What the destination `root` does with names and times. `ask`: a few names may be made there, and are removed.

    They are made in the folder `records` if that lies on the same file system. What cannot be asked is taken for what
    file systems of this type do. Raises OSError if a server does not answer.
    """
    if publish.takes_any_name(root, disk):
        return Rules()
    if not ask:
        return assumed(disk)
    inside = records if os.path.isdir(records) and os.stat(records).st_dev == os.stat(root).st_dev else root
    try:
        with Folders(inside) as folders:
            return _asked_in(folders.root)
    except ScopeferryError:
        return assumed(disk)
    except OSError as error:
        if _is_away(error):
            raise  # whoever knows nothing of a server's names would lose twins there
        return assumed(disk)


def _is_away(error: OSError) -> bool:
    """May it be that a server does not answer?"""
    return error.errno in {errno.EIO, *system.GONE}


def assumed(disk: Disk) -> Rules:
    """What file systems of this type do."""
    blind = Rules(case=True, wide_case=True, only="utf-8", units=True)
    windows = replace(blind, forbidden=SUSPECTS, endings=ENDINGS, reserved=True, lacks=frozenset({"mode"}))
    if disk.type in publish.UNSTEADY:
        step_ns = 10_000_000 if disk.type == "exfat" else 2_000_000_000
        return replace(windows, mtime_step_ns=step_ns, lacks=frozenset({"mode", "links", "hardlinks"}))
    if disk.type in {"ntfs", "refs", "remote", "cifs", "smb3", "smbfs"}:
        return replace(windows, mtime_step_ns=100)
    if disk.type in {"apfs", "hfs"}:
        return replace(blind, full_case=True, forms=True)
    return Rules()


_PLACE = publish.part_name(b"\0names", "00000000")  # no path of a tree holds NUL


def _asked_in(parent: Any) -> Rules:
    before = system.folder_stat(parent)
    with suppress(FileExistsError):  # a killed run left it
        system.make_folder(parent, _PLACE)
    try:
        folder = system.open_folder(parent, _PLACE)
        try:
            _empty(folder)
            return _asked(folder)
        finally:
            try:
                _empty(folder)
            finally:
                system.close_folder(folder)
    finally:
        system.remove_folder(parent, _PLACE)
        with suppress(OSError):
            system.set_attributes(parent, None, before.st_mtime_ns, before.st_atime_ns)


def _asked(folder: Any) -> Rules:
    only = _which(folder)
    fits = _Fitting(folder)
    forbidden = "" if fits(f"a{SUSPECTS}b") else "".join(char for char in SUSPECTS if not fits(f"a{char}b"))
    longest = LONGEST if fits("x" * LONGEST) else _largest(fits)
    step_ns, holds_modes = _attributes(folder)
    pairs = ALIKE if only != "ascii" else {"case": ALIKE["case"]}
    alike = {kind: _same(folder, *pair) for kind, pair in pairs.items()}
    held = {"mode": holds_modes, "links": _links(folder), "hardlinks": _hard_links(folder)}
    return Rules(
        case=bool(alike["case"]),
        wide_case=bool(alike.get("wide_case")),
        full_case=bool(alike.get("full_case")),
        forms=bool(alike.get("forms")),
        forbidden=forbidden + "".join(char for char in system.FORBIDDEN if char not in forbidden),
        endings="".join(char for char in ENDINGS if char in system.ENDINGS or not fits(f"end{char}")),
        reserved=system.RESERVED or not fits("aux.txt"),
        only=only,
        longest=longest,
        units=only != "ascii" and longest == LONGEST and fits("\u00e9" * 200),
        mtime_step_ns=step_ns,
        lacks=frozenset(kind for kind, holds in held.items() if not holds),
        hides="hidden" in alike.values(),
    )


def _which(folder: Any) -> str:
    """Which characters it takes at all."""
    fits = _Fitting(folder)
    if not fits("any\u00e9"):
        return "ascii"
    if not fits("any\U0001f52c"):
        return "bmp"
    return "" if fits("any\udcff") else "utf-8"


def _make(folder: Any, name: str, content: bytes = b"?") -> None:
    """A file with something in it: an empty one appears on some mounts only after it was closed, some time later."""
    fd = system.create_part(folder, name)
    try:
        system.write_at(fd, content, 0)
    finally:
        os.close(fd)


class _Fitting:
    """Does a file of this name appear in a folder, under this name? Nothing is left behind.

    That folder has another name before it is listed: a mount that remembers what was made in it (rclone) asks its
    server then, which may give the file another name.
    """

    def __init__(self, folder: Any) -> None:
        self.folder = folder

    def __call__(self, name: str) -> bool:
        with suppress(FileExistsError):
            system.make_folder(self.folder, "made")
        try:
            with _opened(self.folder, "made") as inner:
                _make(inner, name)
        except (OSError, ValueError):
            return False
        finally:
            found = self._listed()
        forms = {name, unicodedata.normalize("NFD", name)}  # HFS+ lists the decomposed form, and finds both
        return len(found) == 1 and found[0] in forms

    def _listed(self) -> list[str]:
        where = "made"
        with suppress(OSError):  # what moves no folders lists it as it is
            publish.move_folder(self.folder, "made", "listed")
            where = "listed"
        with _opened(self.folder, where) as inner:
            found = _empty(inner)
        system.remove_folder(self.folder, where)
        return found


@contextmanager
def _opened(folder: Any, name: str) -> Iterator[Any]:
    inner = system.open_folder(folder, name)
    try:
        yield inner
    finally:
        system.close_folder(inner)


def _empty(folder: Any) -> list[str]:
    """Remove all that is in our folder; the names."""
    with system.scan(folder) as found:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_folder in entries:
        with suppress(OSError):
            if is_folder:
                with _opened(folder, name) as inner:
                    _empty(inner)
                system.remove_folder(folder, name)
            else:
                system.unlink(folder, name)
    return [name for name, _ in entries]


def _same(folder: Any, one: str, other: str) -> str:
    """Is what was made under one name ``found`` under the other, or is one lost to the other: ``hidden``?

    A mount may know both names, though its server has one file (rclone before a Windows or Samba server).
    """
    for pause_s in (*PAUSES_S, None):
        try:
            return _same_now(folder, one, other)
        except OSError as error:
            if pause_s is None or not _is_away(error):
                break
            time.sleep(pause_s)
        finally:
            _empty(folder)
    return ""


def _same_now(folder: Any, one: str, other: str) -> str:
    _make(folder, one, b"1")
    try:
        system.lstat(folder, other)
    except FileNotFoundError:
        _make(folder, other, b"2")
        return "" if _content(folder, one) == b"1" else "hidden"
    return "found"


def _content(folder: Any, name: str) -> bytes:
    """The first byte of a file, not from a cache."""
    fd = system.open_source(folder, name)
    try:
        system.drop(fd)
        block = bytearray(1)
        return bytes(block[: system.read_into(fd, block, 0)])
    finally:
        os.close(fd)


def _links(folder: Any) -> bool:
    try:
        system.make_link("nowhere", folder, "link")
        return system.read_link(folder, "link") == "nowhere"
    except OSError:
        return False
    finally:
        with suppress(OSError):
            system.unlink(folder, "link")


def _hard_links(folder: Any) -> bool:
    try:
        _make(folder, "one")
        system.hard_link(folder, "one", folder, "other")
        one, other = system.lstat(folder, "one"), system.lstat(folder, "other")
    except OSError:
        return False
    else:
        return one.st_ino == other.st_ino
    finally:
        _empty(folder)


def _largest(fits: _Fitting) -> int:
    low, high = 1, LONGEST  # a name of `low` fits, one of `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits("x" * middle) else (low, middle)
    return low


def _attributes(folder: Any) -> tuple[int, bool]:
    """(the step of its modification times in ns, whether it holds a mode)."""
    name, mode = "times", 0o444 if sys.platform == "win32" else 0o640
    _make(folder, name)
    fd = system.open_source(folder, name)  # some mounts tell the time that was set only of a file that is there
    try:
        with suppress(OSError):
            system.set_attributes(fd, None, ASKED_NS, ASKED_NS)
        with suppress(OSError):
            system.set_attributes(fd, mode, None, ASKED_NS)
    finally:
        os.close(fd)
    found = system.lstat(folder, name)
    off = abs(found.st_mtime_ns - ASKED_NS)
    steps = (step for step in TIME_STEPS_NS if off < step and found.st_mtime_ns % step == 0)
    step = 1 if off == 0 else next(steps, max(TIME_STEPS_NS))
    with suppress(OSError):
        system.unlink(folder, name)
    return step, found.st_mode & 0o777 == mode
