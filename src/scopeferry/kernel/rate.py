"""A rate limit that all workers share."""

from __future__ import annotations

import threading
import time


class TokenBucket:
    """Tells a worker how long to wait after it moved some bytes, so that over any time the sum stays below
    `bytes_per_s`.

    No credit is saved while nothing moves, so there is no burst after a pause.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = 0.0
        self._lock = threading.Lock()

    def __call__(self, size_bytes: int) -> float:
        """Seconds to wait before the next bytes."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size_bytes / self.bytes_per_s
            return self._free_at - now
