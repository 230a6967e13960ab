"""``complete.json``, the last file that our own acquisition writes: how it ended, which chunks are empty or missing.

``{"schema": 1, "state": "finished" | "aborted", "arrays": {PATH: {"written": n, "empty": [KEY...], "missing":
[KEY...]}}}``. A KEY names a chunk (in shards the inner one) on its grid, or a run of them along the first axis, as
``c/37-99/0/0/0``. A file of that name that says anything else is a plain marker: it says that it is over, no more.

>>> found = read_complete(b'{"schema": 1, "state": "aborted", "arrays": {"0": {"missing": ["c/37-39/0"]}}}')
>>> found.state, [*keys(found.arrays["0"].missing)]
('aborted', ['c/37/0', 'c/38/0', 'c/39/0'])
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

NAME = "complete.json"
SCHEMA = 1
STATES = ("finished", "aborted")
_RUN = re.compile(r"(c[/.])?(\d{1,18})-(\d{1,18})((?:[/.]\d+)*)")


@dataclass(frozen=True, slots=True)
class ArrayEnd:
    """What became of one array; `empty` and `missing` hold keys as they are written, see `keys`."""

    written: int = 0
    empty: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """How an acquisition ended; `state` is ``finished`` or ``aborted``, `arrays` goes by path."""

    state: str
    arrays: Mapping[str, ArrayEnd] = field(default_factory=dict)


def read_complete(raw: bytes) -> Complete | None:
    """What the file says; None where it is empty or not ours. Raises nothing.

    >>> read_complete(b""), read_complete(b'{"schema": 2, "state": "finished"}')
    (None, None)
    """
    try:
        found = json.loads(raw)
        arrays = found.get("arrays", {})
        if type(found["schema"]) is not int or found["schema"] != SCHEMA or found["state"] not in STATES:
            return None
        return Complete(found["state"], {path: _array(end) for path, end in arrays.items()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _array(end: Mapping[str, object]) -> ArrayEnd:
    written = end.get("written", 0)
    if type(written) is not int or written < 0:
        raise ValueError(written)
    return ArrayEnd(written, _written_keys(end.get("empty", [])), _written_keys(end.get("missing", [])))


def _written_keys(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
        raise TypeError(found)
    return tuple(found)


def keys(written: Iterable[str]) -> Iterator[str]:
    """Single keys, runs spelt out one by one; a key that is none of ours comes out as it is.

    >>> [*keys(["c/7", "c/1-2", "3-4.0", "c/9-8/0"])]
    ['c/7', 'c/1', 'c/2', '3.0', '4.0', 'c/9-8/0']
    """
    for key in written:
        match = _RUN.fullmatch(key)
        if match is None or int(match[2]) > int(match[3]):
            yield key
            continue
        for index in range(int(match[2]), int(match[3]) + 1):
            yield f"{match[1] or ''}{index}{match[4]}"
