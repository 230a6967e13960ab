"""How a running job looks: progress and problems on stderr, JSON on stdout, and the last lines."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from scopeferry.cli.console import Console
from scopeferry.errors import UsageError
from scopeferry.jobs.result import Result
from scopeferry.kernel.events import Event
from scopeferry.logs import printable
from scopeferry.reports.evidence import last_line, problem_lines
from scopeferry.reports.progress import Meter

WIDE = 10_000
EVENT = b'{"event": '  # how a line of events begins
UNREMARKABLE = {"starting", "listing", "listing again"}  # no line of their own where there is no terminal


class Face:
    """Tell it every event (``None`` is a tick); at the end `end` says how it went, and returns the exit code.

    `owned`: nobody else feeds the meter. ``interval_s`` is the time between lines where there is no terminal.
    """

    def __init__(
        self, console: Console, args: argparse.Namespace, meter: Meter, *, interval_s: float, owned: bool = False
    ) -> None:
        self.console, self.meter, self.owned = console, meter, owned
        self.interval_s = interval_s
        self.as_json, self.quiet = args.json, args.quiet
        self.events_out = args.events == "-"
        self._file = _open_events(args.events)
        self._name = printable(meter.name)
        self._state = self._run = ""
        self._said_at = time.monotonic()
        if args.verbose or console.live:
            from scopeferry import logs

            logs.configure(verbose=args.verbose, write=console.say)

    def tell(self, event: Event | None) -> None:
        """Something happened, or nothing did for a moment."""
        if event is not None:
            if self.owned:
                self.meter.tell(event)
            self._write(event)
        if not self.quiet:
            self._show()
        if event is None:
            self.console.tick()

    def _write(self, event: Event) -> None:
        if self.events_out:
            self.console.out.write(dumps(self._facts(event)) + "\n")
            self.console.out.flush(at_least_s=0.1)
        elif self._file is not None:
            try:
                self._file.write(dumps(self._facts(event)) + "\n")
            except OSError:
                self._close()
        elif event.kind == "note" and "plan" in event.data and not self.as_json:
            self.console.data(f"{event.data['plan']:<8} {printable(event.path)}")

    def _facts(self, event: Event) -> dict[str, Any]:
        self._run = event.run or self._run
        return {**event.as_dict(), "run": self._run}

    def _show(self) -> None:
        if self.console.live:
            self.console.draw(self._line)
            return
        now, state = time.monotonic(), self.meter.counters.waiting or self.meter.state
        changed = state != self._state and state not in UNREMARKABLE
        if changed or now - self._said_at >= self.interval_s:
            self._state, self._said_at = state, now
            self.console.say(self._line(WIDE))

    def _line(self, columns: int, *, ended: bool = False) -> str:
        self.meter.name = self._name
        return self.meter.line(columns, ascii_only=self.console.err.ascii_only, ended=ended)

    def end(self, result: Result) -> int:
        """The finished line of the dataset, what went wrong, and the last line."""
        self._close()
        if not self.quiet and self.meter.total_bytes is not None:
            columns = self.console.err.columns - 1 if self.console.live else WIDE
            self.console.say(self._line(columns, ended=True))
        return last_words(self.console, result, as_json=self.as_json)

    def _close(self) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                pass
            self._file = None

    @contextmanager
    def shown(self) -> Iterator[Face]:
        """Close the file of events, whatever happens."""
        try:
            yield self
        finally:
            self._close()


def watch(
    job: Any,
    console: Console,
    args: argparse.Namespace,
    *,
    interval_s: float,
    reads_only: bool = False,
    before_end: Callable[[Console, Result], None] | None = None,
) -> int:
    """Let a job run to its end and show how it goes; its exit code. A job without a meter of its own is given one.

    ``before_end`` writes data of the job to stdout, where a person reads it.
    """
    from scopeferry.cli.signals import stopping

    meter = getattr(job, "meter", None)
    owned = meter is None
    if meter is None:
        name = os.path.basename(job.result.destination or job.result.source)
        meter = Meter(name, job.control, reads_only=reads_only)
    face = Face(console, args, meter, interval_s=interval_s, owned=owned)
    with face.shown(), stopping(job.control):
        for event in job.run():
            face.tell(event)
        if before_end is not None and not (face.as_json or face.events_out):
            before_end(console, job.result)
        return face.end(job.result)


def last_words(console: Console, result: Result, *, as_json: bool = False) -> int:
    """Problems, the last line, and with ``--json`` the envelope: the exit code."""
    envelope = result.as_dict()
    for line in problem_lines(envelope):
        console.say(line)
    console.say(last_line(envelope))
    if as_json:
        console.data(dumps(envelope))
    return result.exit_code


def _open_events(path: str | None) -> Any:
    if path is None or path == "-":
        return None
    try:
        if os.path.isfile(path):
            with open(path, "rb") as found:
                if found.read(len(EVENT)) not in {b"", EVENT}:
                    say = f"--events: something else stands in {printable(path)}"
                    raise UsageError(say, code="SF-105", path=path, hint="name a new file, or --events=- for stdout")
        return open(path, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise UsageError(f"--events: {printable(path)}: {error.strerror}", code="SF-105", path=path) from error


def dumps(value: Mapping[str, Any]) -> str:
    """JSON on one line. A path that is not UTF-8 is shown escaped, beside its bytes: ``path_b64``."""
    text = json.dumps(value)
    return json.dumps(_told(value)) if "\\udc" in text else text


def _told(value: Any) -> Any:
    if isinstance(value, str):
        return _utf8(value)
    if isinstance(value, Mapping):
        told = {key: _told(entry) for key, entry in value.items()}
        path = value.get("path")
        if isinstance(path, str) and told["path"] != path:
            import base64

            told["path_b64"] = base64.b64encode(os.fsencode(path)).decode()
        return told
    return [_told(entry) for entry in value] if isinstance(value, Iterable) else value


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return printable(text)
    return text
