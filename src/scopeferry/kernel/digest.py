"""Digests: the only module that names algorithms.

The working digest is the first one asked for. It proves what was read back; the others are computed over the same
bytes while the source is read. Tags are those of the standard checkers (``sha256sum --tag``, ``xxhsum --tag``, ``b3sum
--tag``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from scopeferry.config import nearest
from scopeferry.errors import UsageError

DEFAULT = "xxh128"
SEAL = "sha256"  # what names a manifest or a record as a whole, and is the name of that in records

#: name -> (module, factory, size in bytes, tag in manifests)
ALGORITHMS: dict[str, tuple[str, str, int, str]] = {
    "xxh128": ("xxhash", "xxh3_128", 16, "XXH128"),
    "blake3": ("blake3", "blake3", 32, "BLAKE3"),
    "sha256": ("hashlib", "sha256", 32, "SHA256"),
    "sha512": ("hashlib", "sha512", 64, "SHA512"),
    "sha1": ("hashlib", "sha1", 20, "SHA1"),
    "md5": ("hashlib", "md5", 16, "MD5"),
}
BY_TAG = {tag: name for name, (_, _, _, tag) in ALGORITHMS.items()}
#: What a line without a name most probably is, by its number of hex digits.
BY_HEX_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}

_factories: dict[str, Any] = {}


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, in order; raises UsageError (SF-106) with the nearest valid one."""
    seen = dict.fromkeys(names)
    for name in seen:
        if name not in ALGORITHMS:
            near = nearest(name, ALGORITHMS)
            hint = f"did you mean {near}?" if near else ""
            raise UsageError(f"unknown digest {name!r}", code="SF-106", hint=hint)
    return tuple(seen) or (DEFAULT,)


def new(name: str) -> Any:
    """A hash object with ``update`` and ``digest``, for one algorithm."""
    factory = _factories.get(name)
    if factory is None:
        module, attribute, _, _ = ALGORITHMS[name]
        factory = _factories[name] = getattr(__import__(module), attribute)
    return factory()


class Digests:
    """Several digests over the same bytes.

    >>> Digests(["md5"]).update(b"abc").result()["md5"].hex()
    '900150983cd24fb0d6963f7d28e17f72'
    """

    __slots__ = ("_hashes", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._hashes = [new(name) for name in names]

    def update(self, data: Any) -> Digests:
        """Take in the next bytes (anything with the buffer interface)."""
        for one in self._hashes:
            one.update(data)
        return self

    def result(self) -> dict[str, bytes]:
        """Algorithm -> raw digest of everything so far."""
        return {name: one.digest() for name, one in zip(self.names, self._hashes, strict=True)}


def seal(file: Any) -> str:
    """The SHA-256 of all that an open file has yet to give, in hex."""
    hasher = new(SEAL)
    while block := file.read(1 << 20):
        hasher.update(block)
    return str(hasher.hexdigest())


def short(path: bytes) -> str:
    """16 hex digits of a path: what names on disk are made of, so it never changes."""
    hasher = new("xxh128")
    hasher.update(path)
    return str(hasher.hexdigest())[:16]


def in_sample(path: bytes, percent: float) -> bool:
    """Is this path in the sample of `percent` %? The same path is always in or always out.

    >>> sum(in_sample(b"%d" % n, 10) for n in range(10_000)) // 100
    10
    """
    hasher = new("sha256")
    hasher.update(path)
    return int.from_bytes(hasher.digest()[:8]) < percent / 100 * 2**64
