"""Hooks into the calls of ``kernel.publish.system``: something happens before or after the nth call of a function.

Every hook must fire: leaving the context raises for one that has not, so that a scripted fault cannot be missed.

>>> import os, tempfile
>>> from scopeferry.kernel.publish import system
>>> with tempfile.TemporaryDirectory() as root, Steps() as steps:
...     steps.after("open_root", lambda fd, path: print(os.path.isdir(path)))
...     os.close(system.open_root(root))
True
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from scopeferry.kernel import publish

system: Any = publish.system


@dataclass(slots=True)
class _Hook:
    what: Callable[..., Any]
    when: Callable[..., bool] | None
    nth: int
    times: int
    seen: int = 0
    fired: int = 0


class Steps:
    """A context in which functions of `system` are wrapped. Hooks run once; `times` may say more often (0: always)."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self._hooks: dict[tuple[str, str], list[_Hook]] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for name, function in self._kept.items():
            setattr(system, name, function)
        if kind is None:
            hooks = ((key, hook) for key, found in self._hooks.items() for hook in found)
            missed = [" ".join(key) for key, hook in hooks if not hook.fired]
            if missed:
                raise AssertionError(f"never fired: {', '.join(missed)}")

    def before(self, name: str, what: Callable[..., Any], **how: Any) -> None:
        """Call ``what(*arguments)`` before the function; what it raises is what the function raises."""
        self._add("before", name, what, **how)

    def after(self, name: str, what: Callable[..., Any], **how: Any) -> None:
        """Call ``what(answer, *arguments)`` after the function."""
        self._add("after", name, what, **how)

    def instead(self, name: str, what: Callable[..., Any], **how: Any) -> None:
        """Answer with ``what(function, *arguments)``."""
        self._add("instead", name, what, **how)

    def watch(self, *names: str) -> list[tuple[Any, ...]]:
        """A list that receives (name, arguments...) of each call of these functions; there may be none."""
        seen: list[tuple[Any, ...]] = []
        for name in names:
            self._add("before", name, lambda *arguments, name=name: seen.append((name, *arguments)), times=0)
            self._hooks["before", name][-1].fired = 1
        return seen

    def _add(
        self,
        order: str,
        name: str,
        what: Callable[..., Any],
        *,
        when: Callable[..., bool] | None = None,
        nth: int = 1,
        times: int = 1,
    ) -> None:
        if name not in self._kept:
            self._kept[name] = getattr(system, name)
            setattr(system, name, self._wrapped(name, self._kept[name]))
        self._hooks.setdefault((order, name), []).append(_Hook(what, when, nth, times))

    def _due(self, order: str, name: str, arguments: tuple[Any, ...]) -> list[Callable[..., Any]]:
        due = []
        with self._lock:
            for hook in self._hooks.get((order, name), ()):
                if hook.when is not None and not hook.when(*arguments):
                    continue
                hook.seen += 1
                if hook.seen >= hook.nth and (hook.times == 0 or hook.fired < hook.times):
                    hook.fired += 1
                    due.append(hook.what)
        return due

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            for what in self._due("before", name, arguments):
                what(*arguments)
            due = self._due("instead", name, arguments)
            answer = due[-1](function, *arguments) if due else function(*arguments, **named)
            for what in self._due("after", name, arguments):
                what(answer, *arguments)
            return answer

        return call


def path_of(fd: int) -> str:
    """The path of an open descriptor (Linux)."""
    return os.readlink(f"/proc/self/fd/{fd}")


def error(code: int) -> Callable[..., Any]:
    """A hook that raises this errno."""

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail
