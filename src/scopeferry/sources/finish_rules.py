"""Rules by which a run may be over: how people write them, and what each says of what was seen. Pure.

One parser and one table for `live`, for `transfer` and for profiles of instruments. Rules that need formats stand with
the profiles; their names are given to `parse`, what they find out is passed to ``finish.decide`` as evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from scopeferry.config import duration_s, nearest
from scopeferry.errors import UsageError
from scopeferry.sources.finish_facts import FINISHED, Evidence, Facts, Marker, unchanged
from scopeferry.sources.tree import glob_regex

STEM = "complete"


class Rule(NamedTuple):
    """One rule as it was given: ``quiet=2h`` is ("quiet", "2h")."""

    name: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of which any one ends the run. ``others`` are those that somebody else evaluates."""

    given: tuple[Rule, ...]

    def values(self, name: str) -> tuple[str, ...]:
        """What was given to the rules of this name."""
        return tuple(rule.value for rule in self.given if rule.name == name)

    def has(self, name: str) -> bool:
        """Is there a rule of this name?"""
        return any(rule.name == name for rule in self.given)

    @property
    def auto(self) -> bool:
        """Default marker, grid, writer, and quiet as a way out."""
        return self.has("auto")

    @property
    def grid(self) -> bool:
        """May a full grid alone end it? Where a marker is named only if asked for."""
        return self.has("grid") or (self.auto and not self.has("marker"))

    @property
    def writer(self) -> bool:
        """May the end of the writer end it?"""
        return self.auto or self.has("writer")

    @property
    def quiet_s(self) -> float | None:
        """The shortest quiet that was named."""
        return min(map(duration_s, self.values("quiet")), default=None)

    @property
    def others(self) -> tuple[Rule, ...]:
        """What profiles, or whoever gave names to `parse`, evaluate."""
        return tuple(rule for rule in self.given if rule.name not in _OWN or rule.name == "profile")

    def marks(self, path: str) -> bool:
        """Is a file of this path, relative to the source, a finish marker?"""
        return (self.auto and "/" not in path and is_complete(path)) or any(
            glob_regex(glob).fullmatch(path) for glob in self.values("marker")
        )

    def marks_array(self, path: str) -> bool:
        """Is it one of those that, in every array's folder of a plate, are a marker together?"""
        return self.auto and "/" in path and is_complete(path.rpartition("/")[2])


def is_complete(name: str) -> bool:
    """A stem as ``pathlib`` has it: ``complete``, ``complete.json``, not ``complete.tar.gz``."""
    stem, dot, _ = name.rpartition(".")
    return (stem if dot and stem else name) == STEM


def _file_glob(glob: str) -> None:
    if glob.endswith("/"):
        raise UsageError(f"a marker is a file: {glob!r}", code="SF-105", hint=f"did you mean {glob.rstrip('/')}?")
    glob_regex(glob)


ALONE = ("auto", "grid", "writer", "now")
_VALUED: Mapping[str, Callable[[str], object]] = {
    "marker": _file_glob, "quiet": duration_s, "manifest": str, "profile": str,
}  # fmt: skip
_OWN = {*ALONE, *_VALUED}


def parse(texts: Iterable[str], *, more: Collection[str] = ()) -> Rules:
    """Rules as people write them; `more` names valued rules that the caller evaluates. Raises UsageError (SF-105).

    >>> [*map(str, parse(["quiet=2h", "marker=plate_done.txt"]).given)]
    ['quiet=2h', 'marker=plate_done.txt']
    """
    return Rules(tuple(dict.fromkeys(_rule(text.strip(), more) for text in texts)))


def _rule(text: str, more: Collection[str]) -> Rule:
    name, sign, value = text.partition("=")
    if name in ALONE and not sign:
        return Rule(name)
    if (name in _VALUED or name in more) and value:
        _VALUED.get(name, str)(value)
        return Rule(name, value)
    known = [*ALONE, *(f"{valued}=" for valued in (*_VALUED, *more))]
    if name in _OWN or name in more:
        raise UsageError(f"finish rule {name} takes {'no' if name in ALONE else 'a'} value: {text!r}", code="SF-105")
    near = nearest(name, [one.rstrip("=") for one in known])
    hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"no finish rule: {text!r}", code="SF-105", hint=hint)


def find_markers(
    rules: Rules,
    seen: Mapping[str, tuple[float, int]],
    *,
    plate_arrays: Collection[str] = (),
    metadata_ns: Iterable[int] = (),
) -> tuple[Marker, ...]:
    """The markers among files: path -> (when it was seen, as in `Facts`; its mtime in ns).

    ``plate_arrays``: paths of all arrays of a plate, where one marker in each folder will do as well. ``metadata_ns``:
    mtimes of the metadata of every array.

    >>> find_markers(parse(["auto"]), {"a/complete": (5.0, 70), "b/complete": (7.0, 70)}, plate_arrays=["a", "b"])
    (Marker(path='complete in each of 2 arrays', seen_s=7.0, rule='', left_over=False),)
    """
    oldest = min(metadata_ns, default=None)
    found = []

    def add(path: str, at: tuple[float, int], rule: str) -> None:
        found.append(Marker(path, at[0], rule, oldest is not None and at[1] < oldest))

    for path, at in sorted(seen.items()):
        if rules.auto and "/" not in path and is_complete(path):
            add(path, at, "")
        for glob in rules.values("marker"):
            if glob_regex(glob).fullmatch(path):
                add(path, at, glob)
    if rules.auto and plate_arrays:
        each = {path.rpartition("/")[0]: at for path, at in seen.items() if rules.marks_array(path)}
        if not set(plate_arrays) - each.keys():
            last = max(each[array] for array in plate_arrays)
            add(f"{STEM} in each of {len(plate_arrays):,} arrays", last, "")
    return tuple(found)


# -- what they say -----------------------------------------------------------------------------------------------------


def says(rule: Rule, facts: Facts) -> Evidence | None:
    """What a general rule says, if it says finished; None also for rules that others evaluate. ``auto`` stands for its
    marker.

    >>> says(Rule("quiet", "2h"), Facts(now_s=9000.0, quiet_s=8000.0))
    Evidence(kind='quiet', verdict='finished', detail='nothing changed for 2 h 13 min', at=1000.0)
    """
    found = _TABLE.get(rule.name)
    return found(rule.value, facts) if found is not None else None


def _marker(glob: str, facts: Facts) -> Evidence | None:
    found = [marker for marker in facts.markers if marker.rule == glob and not marker.left_over]
    if not found:
        return None
    first = min(found, key=lambda marker: marker.seen_s)
    return Evidence("marker", FINISHED, first.path, first.seen_s)


def _handle(_: str, facts: Facts) -> Evidence | None:
    if facts.writer_alive is False:
        what = "has ended" if facts.writer_seen else "is not there"
        return Evidence("handle", FINISHED, f"process {facts.writer_pid} {what}", facts.now_s)
    if facts.lock_released and not facts.locks:
        return Evidence("handle", FINISHED, f"{facts.lock_released} was unlocked", facts.now_s)
    return None


def _grid(_: str, facts: Facts) -> Evidence | None:
    """An array that grew had a full grid before: there it is no evidence."""
    if facts.grew or facts.short:
        return None
    if facts.list_satisfied:
        return Evidence("structural", FINISHED, f"{facts.list_total:,} of {facts.list_total:,} chunks", facts.now_s)
    if not facts.grid_full:
        return None
    return Evidence("structural", FINISHED, f"{facts.expected:,} of {facts.expected:,} chunks", facts.now_s)


def _quiet(value: str, facts: Facts) -> Evidence | None:
    if facts.quiet_s < duration_s(value):
        return None
    return Evidence("quiet", FINISHED, unchanged(facts), facts.now_s - facts.quiet_s)


def _manifest(file: str, facts: Facts) -> Evidence | None:
    for listed in facts.manifests:
        if listed.file == file and listed.satisfied:
            return Evidence("declared", FINISHED, f"all {listed.total:,} files of {file}", facts.now_s)
    return None


_TABLE: Mapping[str, Callable[[str, Facts], Evidence | None]] = {
    "auto": _marker, "marker": _marker, "writer": _handle, "grid": _grid, "quiet": _quiet, "manifest": _manifest,
}  # fmt: skip


def walked_after(seen_s: float, facts: Facts) -> bool:
    """Has a walk begun later found nothing new, and is nothing in flight?"""
    return facts.walk_begun_s is not None and facts.walk_begun_s > seen_s and not facts.in_flight


def handle_is_enough(facts: Facts) -> bool:
    """A full grid, or none to be filled."""
    plain = not facts.hierarchy and not facts.expected
    return facts.grid_full or facts.list_satisfied or facts.expect == "sparse" or plain


def handle_wait_s(facts: Facts) -> float:
    """So much quiet is needed beside the end of the writer. A process that nobody saw alive may be a wrong number, or
    live on another machine: it shortens nothing.
    """
    never_seen = facts.writer_alive is False and not (facts.writer_seen or facts.lock_released)
    return facts.grid_s if never_seen else facts.settle_s


def grid_wait_s(rules: Rules, facts: Facts) -> float:
    """So much quiet is needed beside a full grid."""
    asked = rules.has("grid") or facts.expect in {"dense", "file"} or facts.settle_given
    ended = rules.writer and _handle("", facts) is not None and handle_wait_s(facts) == facts.settle_s
    return facts.settle_s if asked or ended else facts.grid_s
