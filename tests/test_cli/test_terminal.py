"""In a terminal: one line that is drawn again, never wraps, and is left standing when it is finished.

A small terminal of the tests' own follows what the command writes: columns, wide characters, the sequences it uses.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import termios
import time
import types
import unicodedata

import pytest

SEQUENCE = re.compile(r"\x1b\[(\d*)([AKJm])")


class Terminal:
    """A screen of so many columns; any text that would wrap is an error."""

    def __init__(self, columns):
        self.columns, self.row, self.column = columns, 0, 0
        self.rows = [[]]
        self.drawn = 0

    def feed(self, text):
        at = 0
        while at < len(text):
            if match := SEQUENCE.match(text, at):
                self._sequence(int(match[1] or 0), match[2])
                at = match.end()
                continue
            self._character(text[at])
            at += 1
        return self

    def _sequence(self, number, what):
        if what == "A":
            self.row = max(0, self.row - (number or 1))
        elif what in "KJ":
            del self.rows[self.row][self.column :]
            if what == "J":
                del self.rows[self.row + 1 :]

    def _character(self, char):
        if char == "\r":
            self.column = 0
            self.drawn += 1
        elif char == "\n":
            self.row += 1
            self.rows += [[]] if self.row == len(self.rows) else []
        else:
            assert char.isprintable(), f"control character {char!r}"
            width = 0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
            line = self.rows[self.row]
            line[self.column : self.column + width] = [char] + [""] * (width - 1) if width else []
            self.column += width
            assert self.column <= self.columns, f"wraps: {''.join(line)!r}"

    @property
    def lines(self):
        return ["".join(line) for line in self.rows]


def on_terminal(ferry, columns, *words, **more):
    """Run it on a terminal; (exit code, what it wrote to stderr)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**ferry.environment, "TERM": "xterm", **more}
    started = subprocess.Popen(
        ferry.command(*words),
        cwd=ferry.cwd,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while block := os.read(ours, 65536):
            written += block
    os.close(ours)
    return started.wait(timeout=60), written.decode()


@pytest.mark.parametrize("columns", [12, 40, 80, 200])
@pytest.mark.parametrize("name", ["run7", "2026-11-20_細胞_plate_0007_" + "x" * 150])
def test_one_line_that_never_wraps(ferry, make_tree, tmp_path, columns, name):
    tree = make_tree(tmp_path / name, files=12, size=250_000)
    code, written = on_terminal(ferry, columns, "transfer", tree, "copy", "--limit", "2MB", "--workers", "1")
    assert code == 0
    progress, _, last = written.partition("exit 0")
    terminal = Terminal(columns).feed(progress.rpartition("\x1b[32m")[0])
    assert terminal.drawn >= 5
    finished, rest = terminal.lines[0], terminal.lines[1:]
    assert "\x1b[0m: done and verified" in last or "done and verified" in last
    assert rest == [""]
    assert "copied 100 %" in finished or columns < 40
    assert ("verified 100 %" in finished) == (columns >= 40)
    assert finished.startswith(name[:4]) or columns < 40
    assert ("12 files  3.00 MB" in finished) == (columns >= 80)


def test_at_most_ten_a_second_and_in_order(ferry, make_tree, tmp_path):
    tree = make_tree(tmp_path / "run7", files=2000, size=10)
    began = time.monotonic()
    code, written = on_terminal(ferry, 80, "transfer", tree, "copy", "--workers", "4")
    took_s = time.monotonic() - began
    assert code == 0
    said = [tuple(map(int, found)) for found in re.findall(r"copied (\d+) %  verified (\d+) %", written)]
    assert said == sorted(said)
    assert all(verified <= copied for copied, verified in said)
    assert len(said) <= 10 * took_s + 2


def test_problems_stand_above_the_last_line(ferry, tree):
    os.mkfifo(tree / "pipe")
    code, written = on_terminal(ferry, 200, "transfer", tree, "copy")
    lines = Terminal(400).feed(written).lines
    assert code == 0
    assert lines[0].startswith("run7  copied 100 %  verified 100 %")
    assert lines[1].startswith("SF-901 ")
    assert lines[2].startswith("exit 0: done and verified   5 files, ")


@pytest.mark.parametrize(
    ("more", "drawn", "coloured"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"CI": "true"}, False, False),
    ],
)
def test_what_the_environment_asks(ferry, tree, more, drawn, coloured):
    code, written = on_terminal(ferry, 80, "transfer", tree, "copy", **more)
    assert code == 0
    assert ("\x1b[K" in written) == drawn
    assert ("\x1b[32m" in written) == coloured
    if not drawn:
        assert not re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f]", written.replace("\r\n", "\n"))


def test_a_narrowed_terminal(ferry):
    """What was drawn for more columns is taken away from all the rows it now has."""
    from scopeferry.cli.console import Console

    console = Console()
    console.live, console._drawn = True, 100
    assert console._back(39) == "\x1b[2A\r"
    assert console._back(199) == "\r"


END = "\x1e"


@pytest.fixture
def drawn_on():
    """Let steps draw on a terminal of 40 columns and 8 rows; what stands there at the end."""
    from scopeferry.cli.console import Console, Stream

    def draw(*steps):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 8, 40, 0, 0))
        with open(theirs, "w", encoding="utf-8") as stream:
            console = Console()
            console.err, console.live, console.color = Stream(stream), True, False
            for step in steps:
                console._drawn_at = 0.0
                step(console)
            stream.write(END)
            stream.flush()
            written = b""
            while END.encode() not in written:  # a terminal hands over in pieces
                written += os.read(ours, 1 << 16)
        os.close(ours)
        return [line.rstrip() for line in Terminal(40).feed(written.decode().removesuffix(END)).lines if line]

    return draw


def test_several_lines_are_drawn_over_one_another(drawn_on):
    def lines(*texts):
        return lambda console: console.draw(lambda _columns: "\n".join(texts))

    def say(text):
        return lambda console: console.say(text)

    assert drawn_on(lines("a 1 %", "b 1 %"), lines("a 22 %", "b 2 %")) == ["a 22 %", "b 2 %"]
    assert drawn_on(lines("a", "b", "c"), lines("a"), lines("a", "d")) == ["a", "d"]
    assert drawn_on(lines("a", "b"), say("c finished"), lines("a")) == ["c finished", "a"]
    assert drawn_on(lines("a", "b"), say("c"), lines("a", "b"), lambda console: console.close()) == ["c"]


def test_the_targets_of_a_live_run(drawn_on, monkeypatch):
    """All that go on, two lines each; what has ended is said once and stays."""
    from scopeferry.cli.live_face import LiveFace
    from scopeferry.kernel.task import Control
    from scopeferry.reports.following import Standing

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    running = Standing("a", "running", acquired_bytes=100, copied_bytes=50, awaited="file 'complete'")
    done = Standing("a", "finished", evidence=(("marker", "complete"),), read_back={"storage": 1})
    other = Standing("b", "waiting", waiting="the source", awaited="the source")
    args = argparse.Namespace(json=False, quiet=False, events=None, verbose=False)

    def shown(*moments):
        faces, left = [], [*moments]
        job = types.SimpleNamespace(control=Control(), standings=lambda: left[0])

        def step(console):
            faces.append(faces[0] if faces else LiveFace(console, args, job, interval_s=30))
            faces[0].tell(None)
            faces[0]._looked_at = 0.0
            if len(left) > 1:
                del left[0]

        return drawn_on(*[step] * len(moments))

    going = ["a  running  copied 50.0 %", "a  to end: file 'complete'", "b  waiting for the source"]
    assert shown([running, other]) == going
    assert shown([running, other], [done, other], [done, other]) == [
        "a  finished (marker: complete)", "b  waiting for the source",
    ]  # fmt: skip
    assert shown([running] * 9)[-1] == "and 4 more: 4 running"
