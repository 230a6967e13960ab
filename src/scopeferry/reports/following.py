"""How the targets of a `live` run stand, as lines of text. Pure: the job says how they stand, others print.

``NAME  STATE (what changed last)  acquired  copied %  verified %  rate  lag``, and what the end waits for, on the same
line or below it. Percentages are of what is there now, rounded down: 100 only where nothing is left. *Verified* is what
was read back, and is not said where nothing is.

>>> line(Standing("a.zarr", "running", newest="0/c/12/0/0", changed_s=0.1, acquired_bytes=812_000_000_000,
...     copied_bytes=805_000_000_000, verified_bytes=802_500_000_000, rate=84e6, lag_s=0.2), 200)
'a.zarr  running (0/c/12/0/0 changed 0.1 s ago)  acquired 812 GB  copied 99.1 %  verified 98.8 %  84.0 MB/s  lag 0.2 s'
>>> line(Standing("a.zarr", "finished", evidence=(("marker", "complete"),), acquired_bytes=9, copied_bytes=9,
...     verified_bytes=9, read_back={"storage": 3}, arrays=True), 200)
'a.zarr  finished (marker: complete)  verified 100 %, read back from storage  missing 0  empty 0'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scopeferry.logs import printable
from scopeferry.reports.evidence import WHERE
from scopeferry.reports.units import count, duration, plain, shorten, size, width

GAP = "  "
MIN_NAME = 8
SHOWN_RANGES = 8
ENDED = {"finished", "aborted", "unknown", "failed", "interrupted", "refused", "planned"}


@dataclass(frozen=True, slots=True)
class Standing:
    """How one target stands.

    ``state`` is ``waiting`` (for its source), ``running``, ``ending`` (what is left is compared), or how it ended.
    ``newest`` is what changed last at the source, ``changed_s`` seconds ago; ``lag_s`` how long what arrived last had
    been whole. ``awaited`` says what ends it, ``waiting`` what is gone for now, ``pace`` what holds it back and why.
    ``evidence`` holds (kind, detail), the strongest first. ``missing`` and ``empty`` count chunks where there are
    ``arrays``. ``proof`` is a value of ``--verify``; ``read_back`` counts items by where they were read back from, and
    ``recorded`` those of earlier runs that were compared with their record; ``copied`` those of this run.
    """

    name: str
    state: str
    newest: str = ""
    changed_s: float | None = None
    acquired_bytes: int = 0
    copied_bytes: int = 0
    verified_bytes: int = 0
    rate: float = 0.0
    lag_s: float | None = None
    awaited: str = ""
    waiting: str = ""
    pace: str = ""
    proof: str = "full"
    evidence: Sequence[tuple[str, str]] = ()
    read_back: Mapping[str, int] = field(default_factory=dict)
    recorded: int = 0
    copied: int = 0
    arrays: bool = False
    missing: int = 0
    empty: int = 0
    failed: int = 0

    @property
    def ended(self) -> bool:
        """Is nothing more to come?"""
        return self.state in ENDED


def line(standing: Standing, columns: int, *, ascii_only: bool = False, awaited: bool = False) -> str:
    """At most `columns` wide: the least important parts go first, then the name is shortened in the middle.

    ``awaited``: also say what the end waits for.
    """
    parts = _end_parts(standing) if standing.ended else _parts(standing)
    if awaited and (text := _awaited(standing)):
        parts.append((1, text))
    return _fitted(standing.name, parts, columns, ascii_only=ascii_only)


def to_end(standing: Standing, columns: int, *, ascii_only: bool = False) -> str:
    """What ends it, as a line of its own; empty where nothing is awaited.

    >>> to_end(Standing("a.zarr", "running", awaited="file 'complete', or 10 min quiet"), 80)
    "a.zarr  to end: file 'complete', or 10 min quiet"
    """
    text = _awaited(standing)
    return _fitted(standing.name, [(0, text)], columns, ascii_only=ascii_only) if text else ""


def block(standings: Sequence[Standing], columns: int, rows: int, *, ascii_only: bool = False) -> list[str]:
    """All of those that go on, in at most so many lines: two each if there is room, those that wait last.

    >>> block([Standing("a", "waiting"), Standing("b", "running"), Standing("c", "running")], 80, 2)
    ['b  running', 'and 2 more: 1 running, 1 waiting']
    """
    going = sorted((one for one in standings if not one.ended), key=lambda one: one.state == "waiting")
    shown = [line(one, columns, ascii_only=ascii_only) for one in going]
    if len(going) > max(1, rows):
        kept = max(0, rows - 1)
        rest = [one.state for one in going[kept:]]
        states = ", ".join(f"{rest.count(state):,} {state}" for state in dict.fromkeys(rest))
        return [*shown[:kept], shorten(f"and {len(rest):,} more: {states}", columns, ascii_only=ascii_only)]
    if 2 * len(going) > rows:
        return shown
    below = [to_end(one, columns, ascii_only=ascii_only) for one in going]
    return [text for pair in zip(shown, below, strict=True) for text in pair if text]


# -- parts: (rank, text), the largest rank goes first where there is no room -------------------------------------------


def _parts(standing: Standing) -> list[tuple[int, str]]:
    if standing.waiting:
        return [(0, f"waiting for {printable(standing.waiting)}")]
    parts = [(0, standing.state + _changed(standing))]
    if standing.acquired_bytes:
        parts += [(5, f"acquired {size(standing.acquired_bytes)}"), *_shares(standing)]
    if standing.rate:
        parts.append((4, f"{size(standing.rate)}/s"))
    if standing.pace:
        parts.append((6, standing.pace))
    if standing.lag_s is not None:
        parts.append((7, f"lag {duration(standing.lag_s)}"))
    return parts + _failed(standing)


def _end_parts(standing: Standing) -> list[tuple[int, str]]:
    why = "; ".join(f"{kind}: {detail}" if detail else kind for kind, detail in standing.evidence)
    parts = [(0, standing.state + (f" ({printable(why)})" if why else ""))]
    nothing = not standing.acquired_bytes and standing.state in {"failed", "interrupted"}
    if standing.state not in {"planned", "refused"} and not nothing:
        parts.append((1, _read_back(standing)))
    if standing.arrays:
        parts += [(2, f"missing {standing.missing:,}"), (3, f"empty {standing.empty:,}")]
    return parts + _failed(standing)


def _awaited(standing: Standing) -> str:
    idle = standing.ended or standing.waiting or not standing.awaited
    return "" if idle else f"to end: {printable(standing.awaited)}"


def _changed(standing: Standing) -> str:
    if standing.changed_s is None:
        return ""
    what = f"{printable(standing.newest)} changed " if standing.newest else "changed "
    return f" ({what}{duration(max(0.0, standing.changed_s))} ago)"


def _shares(standing: Standing) -> list[tuple[int, str]]:
    copied = _share(standing.copied_bytes, standing.acquired_bytes)
    parts = [(2, f"copied {copied}")]
    if standing.proof == "full":
        verified = min(standing.verified_bytes, standing.copied_bytes)
        parts.append((3, f"verified {_share(verified, standing.acquired_bytes)}"))
    return parts


def _share(done: int, total: int) -> str:
    return "100 %" if done >= total else f"{max(0, done) * 1000 // total / 10:.1f} %"


def _read_back(standing: Standing) -> str:
    places = [WHERE.get(kind, kind) for kind, number in standing.read_back.items() if number and kind != "no"]
    if not places and standing.recorded and not standing.copied:
        return f"{count(standing.recorded)} as they were recorded"
    if not places:
        share = _share(standing.copied_bytes, standing.acquired_bytes)
        return f"copied {share}, not read back"
    if standing.proof != "full":
        return f"a {standing.proof.partition(':')[0]} read back from {' and '.join(places)}"
    share = _share(min(standing.verified_bytes, standing.copied_bytes), standing.acquired_bytes)
    return f"verified {share}, read back from {' and '.join(places)}"


def _failed(standing: Standing) -> list[tuple[int, str]]:
    return [(1, f"{standing.failed:,} failed")] if standing.failed else []


def _fitted(name: str, parts: list[tuple[int, str]], columns: int, *, ascii_only: bool) -> str:
    parts = [*parts]
    name = printable(name)
    while len(parts) > 1 and _wide(parts) + min(width(name), MIN_NAME) > columns:
        parts.remove(max(parts))
    text = "".join(GAP + (plain(part) if ascii_only else part) for _, part in parts)
    name = shorten(plain(name) if ascii_only else name, max(MIN_NAME, columns - width(text)), ascii_only=ascii_only)
    return shorten(name + text, columns, ascii_only=ascii_only)


def _wide(parts: list[tuple[int, str]]) -> int:
    return sum(len(GAP) + width(text) for _, text in parts)


def array_line(array: Mapping[str, Any]) -> str:
    """What is there of an array, from its object in ``--json``.

    >>> array_line({"path": "0", "grid": [4, 2], "unit": "chunk", "written": 7, "empty": 0, "missing": 1,
    ...     "missing_ranges": ["t 3"]})
    'array 0  grid 4 x 2 chunks  written 7  empty 0  missing 1 (t 3)'
    """
    grid = "unknown" if array["grid"] is None else " x ".join(map(str, array["grid"])) or "1"
    ranges = f" ({', '.join(array['missing_ranges'][:SHOWN_RANGES])})" if array["missing_ranges"] else ""
    counts = "  ".join(f"{name} {array[name]:,}" for name in ("written", "empty", "missing"))
    return f"array {printable(array['path']) or '.'}  grid {grid} {array['unit']}s  {counts}{ranges}"
