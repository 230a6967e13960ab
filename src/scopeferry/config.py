"""Settings of the jobs: frozen values, built once by the command line or by a caller, and passed in.

Defaults < ``scopeferry.toml`` (machine, user, project) < ``SCOPEFERRY_*`` environment < flags. No pydantic here, for start-up
counts; nobody below the command line reads the environment.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from scopeferry.errors import UsageError

DIGESTS = ("xxh128",)
KEEP = ("times", "mode", "links", "hardlinks", "holes", "xattrs", "owner", "acl", "streams")
KEEP_DEFAULT = KEEP[:6]
CONFLICT = ("refuse", "replace", "keep-both")
EXECUTORS = ("threads",)

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?(?:/s)?")
_SIZE_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """What `transfer` can be told; see ``docs/reference/commands.md``.

    ``verify`` is ``full``, ``all``, ``none`` or ``sample:P%``; ``select`` holds ("include" or "exclude", glob) in the order given;
    ``limit`` is in bytes/s; patience is in seconds, None for the defaults (1 h for a side that is gone, 60 s for room).
    """

    verify: str = "full"
    digest: tuple[str, ...] = DIGESTS
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

    def __post_init__(self) -> None:
        choose("--on-conflict", self.on_conflict, CONFLICT)
        choose("--executor", self.executor, EXECUTORS)
        choose("--names", self.names, ("refuse", "percent"))
        for kind in self.keep:
            choose("--keep", kind, KEEP)
        percent(self.verify)
        if self.workers is not None and not 1 <= self.workers <= 64:  # noqa: PLR2004
            raise UsageError(f"--workers is 1 to 64, not {self.workers}", code="SF-105")
        if self.limit is not None and self.limit <= 0:
            raise UsageError("--limit is a positive number of bytes a second", code="SF-105")


def choose(option: str, value: str, valid: tuple[str, ...]) -> str:
    """The value, if it is valid; raises UsageError (SF-105) with the nearest one."""
    if value not in valid:
        near = difflib.get_close_matches(value, valid, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(valid)}"
        raise UsageError(f"{option} {value!r} is not known: {hint}", code="SF-105", hint=hint)
    return value


def percent(verify: str) -> float:
    """How much of what is written is read back, in percent, for a value of ``--verify``.

    >>> percent("full"), percent("sample:2.5%"), percent("none")
    (100.0, 2.5, 0.0)
    """
    if verify in {"full", "all"}:
        return 100.0
    if verify == "none":
        return 0.0
    if match := re.fullmatch(r"sample:(\d+(?:\.\d+)?)%", verify):
        value = float(match[1])
        if 0 < value <= 100:  # noqa: PLR2004
            return value
    raise UsageError(f"--verify {verify!r} is not known: full, all, none or sample:P% (0 < P <= 100)", code="SF-105")


def duration_s(text: str) -> float:
    """A duration in seconds: ``500ms 10s 5m 2h 30d``, or a number of seconds.

    >>> duration_s("5m"), duration_s("500ms")
    (300.0, 0.5)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a duration: {text!r} (500ms, 10s, 5m, 2h, 30d)", code="SF-105")
    return float(match[1]) * _DURATION_S[match[2]]


def size_bytes(text: str) -> int:
    """A size in bytes: MB is 10^6, MiB is 2^20.

    >>> size_bytes("50MB"), size_bytes("1MiB")
    (50000000, 1048576)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"not a size: {text!r} (50MB, 1GiB)", code="SF-105")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _SIZE_POWER[match[2].upper()])
