"""A rate limit that all workers share."""

from __future__ import annotations

import threading
import time
from typing import Protocol

PIECE_BYTES = 1 << 20
PIECES_A_SECOND = 8  # at least: so no 5 s see more than a fortieth beyond their share


class Limit(Protocol):
    """Is told, by each worker, of bytes that it is about to move."""

    @property
    def piece_bytes(self) -> int:
        """How many bytes may be moved at once."""

    def __call__(self, size_bytes: int) -> float:
        """Seconds to wait before these bytes."""


class TokenBucket:
    """A limit by which the sum over any few seconds stays below `bytes_per_s`.

    No credit is saved while nothing moves, so there is no burst after a pause.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    @property
    def piece_bytes(self) -> int:
        """How many bytes may be moved at once."""
        return max(1, min(PIECE_BYTES, int(self.bytes_per_s / PIECES_A_SECOND)))

    def __call__(self, size_bytes: int) -> float:
        """Seconds to wait before these bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size_bytes / self.bytes_per_s
            return self._free_at - now
