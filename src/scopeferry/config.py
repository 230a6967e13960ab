"""Settings of the jobs: frozen values, built once by the command line or by a caller, and passed in.

Defaults < ``scopeferry.toml`` (machine, user, project) < ``.env`` of the project < ``SCOPEFERRY_*`` variables < flags.
Every source gives `Setting`s in the order written; `fold` parses them and remembers where each value came from. Words
and values are the same everywhere: ``on-conflict = "replace"`` in ``[transfer]``, ``--on-conflict replace``,
``SCOPEFERRY_TRANSFER_ON_CONFLICT=replace``. No pydantic here, for start-up counts; nobody below the command line reads
the environment.

>>> fold("transfer", [Setting("workers", "8", "--workers", 1)]).transfer().workers
8
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scopeferry.errors import UsageError

KEEP = ("times", "mode", "links", "hardlinks", "holes", "xattrs", "owner", "acl", "streams")
KEEP_DEFAULT = KEEP[:6]
CONFLICT = ("refuse", "replace", "keep-both")
EXECUTORS = ("threads",)
NAMES = ("refuse", "percent")
WRITERS = (
    "auto", "tensorstore", "zarr-python", "zarr-python-3.0", "iohub", "zarrs", "acquire-zarr", "ome-writers",
    "scopeferry", "generic",
)  # fmt: skip
EXPECT = ("auto", "dense", "sparse")
WATCH = ("auto", "scan", "events")
STALE = ("aside", "keep")
GENTLE = ("auto", "off")
MAX_WORKERS = 64
MAX_S = 365 * 86400.0

FILE = "scopeferry.toml"
PREFIX = "SCOPEFERRY_"
NOT_SETTINGS = {"SCOPEFERRY_REQUIRE", "SCOPEFERRY_SAMPLES", "SCOPEFERRY_EXENGINE_SRC"}  # read by the tests

_DURATION = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?"
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?(?:/s)?"
_SIZE_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SWITCH = dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True) | dict.fromkeys(
    ("false", "f", "no", "n", "off", "0"), False
)


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What `transfer` can be told; see ``docs/reference/commands.md``.

    ``verify`` is ``full``, ``all``, ``none`` or ``sample:P%``; ``select`` holds ("include" or "exclude", glob) in the
    order given; ``limit`` is in bytes/s; patience is in seconds, None for the defaults (1 h for a side that is gone,
    60 s for room); ``finish`` holds rules of ``sources/finish.py``, for which ``wait_s`` seconds are waited. Raises
    UsageError (SF-105) for a value that is not understood.
    """

    verify: str = "full"
    digest: tuple[str, ...] = ()  # the default of kernel/digest.py
    workers: int | None = None
    executor: str = "threads"
    on_conflict: str = "refuse"
    select: tuple[tuple[str, str], ...] = ()
    keep: frozenset[str] = frozenset(KEEP_DEFAULT)
    strict: bool = False
    names: str = "refuse"
    parents: bool = False
    limit: float | None = None
    patience_s: float | None = None
    journal: str | None = None
    records: str | None = None
    dry_run: bool = False
    finish: tuple[str, ...] = ()
    wait_s: float | None = None

    def __post_init__(self) -> None:
        for key in ("verify", "workers", "executor", "on_conflict", "names", "limit", "patience_s", "finish", "wait_s"):
            value = getattr(self, key)
            if value not in {None, ()}:
                name = key.removesuffix("_s").replace("_", "-")
                _parsed(SECTIONS["transfer"][name], value, f"--{name}", "SF-105")
        _parsed(_kinds, tuple(self.keep), "--keep", "SF-105")

    @property
    def waived(self) -> list[str]:
        """What makes the promise smaller than it is by default, as options.

        >>> TransferSettings(verify="none", select=(("exclude", "tmp/"),)).waived
        ['--verify none', '--exclude tmp/']
        """
        said = [] if self.verify in {"full", "all"} else [f"--verify {self.verify}"]
        said += [] if self.on_conflict == "refuse" else [f"--on-conflict {self.on_conflict}"]
        said += [f"--no-keep {kind}" for kind in KEEP_DEFAULT if kind not in self.keep]
        return said + [f"--{kind} {glob}" for kind, glob in self.select]


# -- values ------------------------------------------------------------------------------------------------------------


def percent(verify: str) -> float:
    """How much of what is written is read back, in percent, for a value of ``--verify``.

    >>> percent("full"), percent("sample:2.5%"), percent("none")
    (100.0, 2.5, 0.0)
    """
    if verify in {"full", "all"}:
        return 100.0
    if verify == "none":
        return 0.0
    if match := re.fullmatch(r"sample:(\d+(?:\.\d+)?)%", str(verify)):
        value = float(match[1])
        if 0 < value <= 100:
            return value
    raise UsageError(f"{verify!r} is none of full, all, none, sample:P% (0 < P <= 100)", code="SF-105")


def duration_s(text: str) -> float:
    """A duration in seconds: ``500ms 10s 5m 2h 30d``, or a number of seconds.

    >>> duration_s("5m"), duration_s("500ms")
    (300.0, 0.5)
    """
    match = re.fullmatch(_DURATION, text.strip())
    if match is None:
        raise UsageError(f"not a duration: {text!r} (500ms, 10s, 5m, 2h, 30d)", code="SF-105")
    return float(match[1]) * _DURATION_S[match[2]]


def size_bytes(text: str) -> int:
    """A size in bytes: MB is 10^6, MiB is 2^20.

    >>> size_bytes("50MB"), size_bytes("1MiB")
    (50000000, 1048576)
    """
    match = re.fullmatch(_SIZE, text.strip())
    if match is None:
        raise UsageError(f"not a size: {text!r} (50MB, 1GiB)", code="SF-105")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _SIZE_POWER[match[2].upper()])


def percentage(text: str) -> float:
    """A share in percent, 0 < P <= 100.

    >>> percentage("5%"), percentage("0.5")
    (5.0, 0.5)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise UsageError(f"not a share: {text!r} (5%; more than 0, at most 100)", code="SF-105")
    return float(match[1])


def nearest(word: str, words: Iterable[str]) -> str:
    """The one of `words` that was probably meant, or an empty string."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(words), 1, 0.5)), "")


def choose(option: str, value: str, valid: Sequence[str]) -> str:
    """The value, if it is valid; raises UsageError (SF-105) with the nearest one."""
    return str(_parsed(one_of(valid), value, option, "SF-105"))


def one_of(valid: Sequence[str]) -> Callable[[Any], str]:
    """A reader of values that must be one of these words."""

    def read(value: Any) -> str:
        if value in valid:
            return str(value)
        near = nearest(str(value), valid)
        hint = f"did you mean {near}?" if near else f"one of {', '.join(valid)}"
        raise UsageError(f"{value!r} is not known", code="SF-105", hint=hint)

    return read


def words(value: Any) -> tuple[str, ...]:
    """A list, or text with commas.

    >>> words("sha256, md5"), words(["a"])
    (('sha256', 'md5'), ('a',))
    """
    if isinstance(value, str):
        return tuple(word.strip() for word in value.split(",") if word.strip())
    if isinstance(value, list | tuple) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise UsageError(f"not a list of words: {value!r}", code="SF-105")


def whole(value: Any) -> int:
    """A whole number."""
    if type(value) is int or (isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value)):
        return int(value)
    raise UsageError(f"not a whole number: {value!r}", code="SF-105")


def switch(value: Any) -> bool:
    """A yes or no, in any case.

    >>> switch("no"), switch(True), switch("T")
    (False, True, True)
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _SWITCH:
        return _SWITCH[value.strip().lower()]
    raise UsageError(f"neither true nor false: {value!r}", code="SF-105")


def text(value: Any) -> str:
    """A text that is not empty."""
    if isinstance(value, str) and value:
        return value
    raise UsageError(f"not a text: {value!r}", code="SF-105")


def _workers(value: Any) -> int:
    number = whole(value)
    if not 1 <= number <= MAX_WORKERS:
        raise UsageError(f"{number} is not between 1 and {MAX_WORKERS}", code="SF-105")
    return number


def _seconds(value: Any) -> float:
    return duration_s(value if isinstance(value, str) else str(value))


def time_s(low: float = 0.0, high: float = MAX_S) -> Callable[[Any], float]:
    """A reader of durations, or numbers of seconds, within bounds.

    >>> time_s()("500ms"), time_s()(".5"), time_s()(2)
    (0.5, 0.5, 2.0)
    """

    def read(value: Any) -> float:
        try:
            seconds = float(value if type(value) in {int, float} else text(value))
        except ValueError:
            seconds = duration_s(value)
        if not low <= seconds <= high:
            raise UsageError(f"{value!r} is not between {_shown_s(low)} and {_shown_s(high)}", code="SF-105")
        return seconds

    return read


def _shown_s(seconds: float) -> str:
    units = ((unit, per) for unit, per in reversed(_DURATION_S.items()) if unit and seconds >= per)
    return next((f"{seconds / per:g}{unit}" for unit, per in units), "0s")


def _rate(value: Any) -> float:
    number = float(value) if type(value) in {int, float} else float(size_bytes(text(value)))
    if not 0 < number < 1e18:
        raise UsageError(f"{value!r} is not a positive number of bytes a second", code="SF-105")
    return number


def _proof(value: Any) -> str:
    percent(value)
    return str(value)


def _kinds(value: Any) -> tuple[str, ...]:
    return tuple(map(one_of(KEEP), words(value)))


def _read_back(value: Any) -> str:
    if value == "all":
        raise UsageError("'all' is none of full, none, sample:P% (0 < P <= 100)", code="SF-105")
    return _proof(value)


def _rules(value: Any) -> tuple[str, ...]:
    """One rule, or a list of them: their grammar is that of ``sources/finish.py``."""
    return tuple(map(text, value)) if isinstance(value, list | tuple) else (text(value),)


def _some_rules(value: Any) -> tuple[str, ...]:
    if value in ([], ()):
        raise UsageError("an empty list of rules", code="SF-105")
    return _rules(value)


def at_least_1(value: Any) -> int:
    """A whole number from 1 on."""
    number = whole(value)
    if number < 1:
        raise UsageError(f"{number} is less than 1", code="SF-105")
    return number


#: section -> key, as in a file and behind ``--`` -> what reads a value; reading twice changes nothing.
SECTIONS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "transfer": {
        "verify": _proof, "digest": words, "workers": _workers, "executor": one_of(EXECUTORS),
        "on-conflict": one_of(CONFLICT), "include": words, "exclude": words, "keep": _kinds, "no-keep": _kinds,
        "strict": switch, "names": one_of(NAMES), "parents": switch, "limit": _rate, "patience": _seconds,
        "finish": _rules, "wait": time_s(), "journal": text, "records": text, "interval": _seconds,
    },
    "live": {
        "workers": _workers, "nprocs": at_least_1, "sleep-time": time_s(), "wait-for-source": switch,
        "finish": _some_rules, "settle": time_s(), "expect": text, "writer": one_of(WRITERS), "writer-pid": at_least_1,
        "watch": one_of(WATCH), "scan-interval": time_s(0.01, 3600), "limit": _rate, "gentle": one_of(GENTLE),
        "verify": _read_back, "on-conflict": one_of(CONFLICT[:2]), "stale": one_of(STALE), "patience": time_s(),
        "include": words, "exclude": words, "journal": text, "records": text, "interval": _seconds,
    },
}  # fmt: skip
#: What holds where nobody says anything; of `transfer`, the defaults of TransferSettings do.
DEFAULTS: dict[str, dict[str, Any]] = {
    "transfer": {"interval": 30.0},
    "live": {
        "workers": 4, "nprocs": None, "sleep-time": 0.0, "wait-for-source": True, "finish": ("auto",), "settle": 10.0,
        "expect": "auto", "writer": "auto", "writer-pid": None, "watch": "auto", "scan-interval": 0.5, "limit": None,
        "gentle": "auto", "verify": "full", "on-conflict": "refuse", "stale": "aside", "patience": None, "select": (),
        "journal": None, "records": None, "interval": 30.0,
    },
}  # fmt: skip
_FIELDS = {"on-conflict": "on_conflict", "patience": "patience_s", "wait": "wait_s"}
_ONE_OF_TWO = {"workers": "nprocs", "nprocs": "workers"}  # two ways to say one thing: the last said holds


def read(section: str, key: str, value: Any) -> Any:
    """A value given in Python, as the flag of that name would give it; raises UsageError (SF-105)."""
    return _parsed(SECTIONS[section][key], value, f"--{key}", "SF-105")


def flag(option: str, value: str | None, read: Callable[[str], Any], default: Any = None) -> Any:
    """The value of an option that is no setting, `default` if it was not given; raises UsageError naming it."""
    return default if value is None else _parsed(read, value, option, "SF-105")


def _parsed(read: Callable[[Any], Any], value: Any, place: str, code: str) -> Any:
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(
            f"{place}: {error}", code=code, hint="" if error.hint.startswith("see") else error.hint
        ) from None


# -- folding -----------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A value as written, its place (``FILE:LINE: key``, a variable, a flag), and its layer: flags are highest."""

    key: str
    value: Any
    place: str
    layer: int


FLAGS = 9


@dataclass(frozen=True, slots=True)
class Configured:
    """The values of a section, and the places each came from; what stands nowhere has its default."""

    values: Mapping[str, Any]
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    section: str = "transfer"

    def get(self, key: str) -> Any:
        """A value, or its default."""
        default = DEFAULTS[self.section].get(key)
        if default is None and self.section == "transfer":
            default = getattr(TransferSettings(), _FIELDS.get(key, key), None)
        return self.values.get(key, default)

    def place(self, key: str) -> str:
        """Where a value came from."""
        return ", ".join(self.origins.get(key, ("default",)))

    def transfer(self, *, dry_run: bool = False) -> TransferSettings:
        """The settings of `transfer`."""
        known = {_FIELDS.get(key, key): value for key, value in self.values.items() if key != "interval"}
        return TransferSettings(**known, dry_run=dry_run)


def fold(section: str, found: Iterable[Setting]) -> Configured:
    """The values that hold when these settings were given, lowest layer first. Raises UsageError naming the place.

    ``include``, ``exclude``, ``keep`` and ``no-keep`` add to what lower layers say; others replace it. ``digest`` and
    ``finish`` may be given several times in one layer.
    """
    values: dict[str, Any] = {}
    origins: dict[str, tuple[str, ...]] = {}
    layer_of: dict[str, int] = {}
    for key, raw, place, layer in found:
        value = _parsed(SECTIONS[section][key], raw, place, "SF-105" if layer == FLAGS else "SF-109")
        name = key
        more: tuple[str, ...] = ()
        if key in {"include", "exclude"}:
            name, value = "select", (*values.get("select", ()), *((key, glob) for glob in value))
        elif key in {"keep", "no-keep"}:
            kept = values.get("keep", frozenset(KEEP_DEFAULT))
            name, value = "keep", kept.union(value) if key == "keep" else kept.difference(value)
        elif key in {"digest", "finish"} and layer_of.get(key) == layer:
            value = (*values[key], *value)
        elif other := _ONE_OF_TWO.get(key) if section == "live" else None:
            values.pop(other, None)
        if name in {"select", "keep"} or layer_of.get(name) == layer:
            more = origins.get(name, ())
        values[name], origins[name], layer_of[name] = value, tuple(dict.fromkeys((*more, place))), layer
    return Configured(values, origins, section)


# -- files and environment ---------------------------------------------------------------------------------------------


def find(section: str, environ: Mapping[str, str], project: str = "") -> Iterator[Setting]:
    """What files and environment say of a section, lowest layer first; all of them are checked for unknown names.

    Raises UsageError (SF-109) naming file, line and the nearest valid name.
    """
    for layer, path in enumerate(files(environ, project), 1):
        yield from (setting for name, setting in _from_file(path, layer) if name == section)
    named = list(_from_dotenv(os.path.join(project, ".env")))
    named += [(name, value, name) for name, value in sorted(environ.items()) if name.startswith(PREFIX)]
    for name, value, place in named:
        owner, key = _variable(name, place)
        if owner == section and value:
            yield Setting(key, value, place, 5 if place == name else 4)


def files(environ: Mapping[str, str], project: str = "") -> list[str]:
    """Where ``scopeferry.toml`` may lie: of the machine, of the user, of the project."""
    if sys.platform == "win32":
        machine = os.path.join(environ.get("PROGRAMDATA", r"C:\ProgramData"), "scopeferry")
        user = os.path.join(environ.get("APPDATA", os.path.expanduser(r"~\AppData\Roaming")), "scopeferry")
    else:
        machine = "/etc/scopeferry"
        user = os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "scopeferry")
    return [os.path.join(folder, FILE) for folder in (machine, user, project)]


def _regular(path: str, flags: int) -> int:
    """Open a regular file, and nothing that has no end or would wait for a writer."""
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "no regular file", path)


def _from_file(path: str, layer: int) -> Iterator[tuple[str, Setting]]:
    try:
        with open(path, "rb", opener=_regular) as file:
            raw = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", code="SF-109", path=path) from error
    import tomllib

    try:
        content = raw.decode()
        tables = tomllib.loads(content)
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}", code="SF-109", path=path) from error
    for section, table in tables.items():
        if section not in SECTIONS or not isinstance(table, dict):
            raise _unknown(_at(path, content, "", section), section, SECTIONS, "section")
        for written, value in table.items():
            place = _at(path, content, section, written)
            key = written.replace("_", "-")
            if key not in SECTIONS[section]:
                raise _unknown(place, written, SECTIONS[section], f"setting of [{section}]")
            yield section, Setting(key, value, f"{place}: {written}", layer)


def _at(path: str, content: str, section: str, key: str) -> str:
    """``FILE:LINE`` of a key of a section, or of a section."""
    here = ""
    for number, line in enumerate(content.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            here = match[1].strip("\"'")
            if not section and here.split(".")[0] == key:
                return f"{path}:{number}"
        elif re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line) and here == section:
            return f"{path}:{number}"
    return path


def _from_dotenv(path: str) -> Iterator[tuple[str, str, str]]:
    """(name, value, place) of our variables in ``.env``; others are none of our business, nor is a folder or a pipe of
    that name.
    """
    if not os.path.isfile(path):
        return
    try:
        with open(path, encoding="utf-8", errors="replace", opener=_regular) as lines:
            for number, line in enumerate(lines, 1):
                name, equals, value = line.strip().removeprefix("export ").partition("=")
                if equals and name.strip().startswith(PREFIX):
                    yield name.strip(), _unquoted(value.strip()), f"{path}:{number}: {name.strip()}"
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", code="SF-109", path=path) from error


def _unquoted(value: str) -> str:
    if match := re.fullmatch(r"""(["'])(.*?)\1\s*(?:#.*)?""", value):
        return match[2]
    return re.sub(r"\s+#.*", "", value)


def variables() -> dict[str, tuple[str, str]]:
    """Variable -> (section, key) of all settings.

    >>> variables()["SCOPEFERRY_TRANSFER_ON_CONFLICT"]
    ('transfer', 'on-conflict')
    """
    return {
        f"{PREFIX}{section}_{key}".upper().replace("-", "_"): (section, key)
        for section, keys in SECTIONS.items()
        for key in keys
    }


def _variable(name: str, place: str) -> tuple[str, str]:
    if name in NOT_SETTINGS:
        return "", ""
    known = variables()
    if name not in known:
        raise _unknown(place.rpartition(": ")[0] or "environment", name, known, "variable")
    return known[name]


def _unknown(place: str, written: str, known: Iterable[str], what: str) -> UsageError:
    near = nearest(written, known)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"{place}: {written} is no {what}", code="SF-109", path=place.rpartition(":")[0], hint=hint)
