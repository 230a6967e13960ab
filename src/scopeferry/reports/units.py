"""Numbers as people read them: 20,431 files, 1.31 TB, 3 min, 99 %; and names that fit a width."""

from __future__ import annotations

_STEP = 1000
_WIDE = "WF"


def size(size_bytes: float) -> str:
    """Bytes with three digits; MB is 10^6.

    >>> size(0), size(999), size(1500), size(49_300_000), size(999_600_000), size(1_310_000_000_000)
    ('0 B', '999 B', '1.50 kB', '49.3 MB', '1.00 GB', '1.31 TB')
    """
    value, unit = float(size_bytes), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < _STEP - (0.5 if unit != "B" else 0):
            break
        if unit != "PB":
            value /= _STEP
    if unit == "B":
        return f"{int(value)} B"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def count(number: int, noun: str = "file") -> str:
    """A number of things.

    >>> count(1), count(20431), count(2, "copy")
    ('1 file', '20,431 files', '2 copies')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """A time to wait, or that has passed.

    >>> duration(0.4), duration(42), duration(200), duration(9000), duration(200_000)
    ('0.4 s', '42 s', '3 min 20 s', '2 h 30 min', '2 d 7 h')
    """
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds < 9.95 else "10 s"
    whole = round(seconds)
    for unit, small, below, per in (("s", "", 60, 1), ("min", "s", 3600, 60), ("h", "min", 86400, 3600)):
        if whole < below:
            first, rest = divmod(whole, per)
            second = rest // {60: 1, 3600: 60}.get(per, 1)
            return f"{first} {unit}" + (f" {second} {small}" if second else "")
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def percent(done: int, total: int) -> int:
    """Whole percent, rounded down: 100 only when nothing is left.

    >>> percent(9999, 10_000), percent(10_000, 10_000), percent(0, 0), percent(12, 10)
    (99, 100, 100, 100)
    """
    return 100 if done >= total else max(0, done) * 100 // total


def width(text: str) -> int:
    """The columns that text takes in a terminal.

    >>> width("run7"), width("細胞"), width("e\u0301")
    (4, 4, 1)
    """
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in _WIDE else 1 for c in text)


def shorten(text: str, columns: int, *, ascii_only: bool = False) -> str:
    """Text of at most so many columns, shortened in the middle.

    >>> shorten("2026-11-20_plate_0007", 12, ascii_only=True), shorten("run7", 12)
    ('2026-...0007', 'run7')
    """
    if width(text) <= columns:
        return text
    mark = "..." if ascii_only else "…"
    room = columns - len(mark)
    if room < 2:
        return mark[:columns] if columns > 0 else ""
    tail = _fit(text[::-1], room // 2)[::-1]
    return _fit(text, room - width(tail)) + mark + tail


def _fit(text: str, columns: int) -> str:
    taken = 0
    for index, char in enumerate(text):
        taken += width(char)
        if taken > columns:
            return text[:index]
    return text


def plain(text: str) -> str:
    r"""Text in ASCII, whatever it held.

    >>> plain("µm")
    '\\xb5m'
    """
    return text.encode("ascii", "backslashreplace").decode()
