"""One question at a time: whoever asks the same while it is being asked takes the answer to the next one.

A server that is gone may need seconds to not answer, and sixteen workers would each ask it.

>>> ask("server", lambda: True)
True
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_LOCK = threading.Lock()
_ASKING: dict[str, threading.Lock] = {}
_ANSWERS: dict[str, tuple[float, bool]] = {}  # when the question was begun, and its answer


def ask(what: str, question: Callable[[], bool]) -> bool:
    """The answer to `question`, which was begun after this call."""
    begun = time.monotonic()
    with _LOCK:
        asking = _ASKING.setdefault(what, threading.Lock())
    with asking:
        at, answer = _ANSWERS.get(what, (begun - 1, False))
        if at < begun:
            at, answer = time.monotonic(), question()
            _ANSWERS[what] = at, answer
        return answer
