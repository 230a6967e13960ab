"""Play a page: its console and Python blocks are run in their order, as a reader would type them.

What a page may hold, and what is made of it:

* A ``console`` block: each line after ``$`` goes to one bash that serves the whole page. Lines below it are what the
  command must print (stdout and stderr), ``...`` standing for anything, a line ``...`` for any lines. A command whose
  output is not shown may print what it likes.
* The exit code is the one that the page shows: in a last line ``exit 4: ...``, or in a comment, ``# exit 4``; else 0.
* A ``python`` block is executed; a value on a line of its own must be what the comment after it says.
* ``<!-- setup ... -->``: lines for that bash that a reader does not see.
* ``<!-- not run: REASON -->`` before a block leaves it out. Blocks of ``sh``, ``bat`` and ``powershell`` need it.

``/acq`` and ``/mnt`` are two folders of this test. There lie a run, ``/acq/run7``, and the empty folders
``/mnt/archive`` and ``/mnt/tape``. Rates, times, run ids and digests are not compared, nor are the lines that a
terminal would have drawn over.
"""

from __future__ import annotations

import ast
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tokenize
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

MINUTE_S = 60
MARK = "=== end of command ==="

_PIECES = re.compile(
    r"<!--(?P<comment>.*?)-->|^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_EXIT = re.compile(r"\bexit (\d+)")
_PLACES = re.compile(r"(?<![\w./-])/(acq|mnt)(?=[/\s\"',;]|$)")
_DRAWN_OVER = re.compile(r"\S+ (copied|checked) \d+(\.\d+)? %.* of [\d,]+ (files|items)\b")
_VARIES = (
    (re.compile(r"\s+"), " "),
    (re.compile(r"\d[\d.,]* [kMGT]?B/s"), "RATE"),
    (re.compile(r"\b\d{8}T\d{6}Z-[0-9a-f]{6}\b"), "RUN"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?([+-]\d{4})?"), "TIME"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"(?:[\d,]+ from (?:storage|memory)(?:, | and )?)+"), "all from storage"),  # pages that others hold
    (re.compile(r"from memory"), "from storage"),  # where the test's folders lie in memory
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. ``skipped`` is why it is not run; ``line`` that of its fence."""

    language: str
    body: str
    line: int
    skipped: str = ""


@dataclass(frozen=True)
class Command:
    """One command line, and what it must print; None: whatever it likes."""

    text: str
    shown: list[str] | None
    line: int

    @property
    def exit_code(self) -> int:
        last = next((line for line in reversed(self.shown or []) if re.match(r"exit \d+", line)), "")
        found = _EXIT.match(last) or _EXIT.search(self.text.partition(" #")[2])
        return int(found[1]) if found else 0


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page and, as language ``setup``, its hidden lines."""
    skipped = ""
    after = 0
    for piece in _PIECES.finditer(text):
        line = text.count("\n", 0, piece.start()) + 1
        comment = piece["comment"]
        if comment is None:
            near = not text[after : piece.start()].strip()
            indent = piece["indent"]
            body = re.sub(f"^{indent}", "", piece["body"], flags=re.MULTILINE) if indent else piece["body"]
            yield Block(piece["language"], body, line, skipped if near else "")
            skipped = ""
        elif comment.strip().startswith("not run:"):
            skipped = comment.strip().removeprefix("not run:").strip()
        elif comment.strip().startswith("setup"):
            yield Block("setup", comment.strip().removeprefix("setup"), line)
        after = piece.end()


def commands(block: Block) -> Iterator[Command]:
    """The command lines of a console block, each with what is shown below it."""
    text, shown, at = "", [], 0
    for number, line in enumerate(block.body.splitlines(), block.line + 1):
        if line.startswith("$ "):
            if text:
                yield Command(text, shown or None, at)
            text, shown, at = line[2:], [], number
        elif text.endswith("\\") and line.startswith("> "):
            text += "\n" + line[2:]
        else:
            shown.append(line)
    if text:
        yield Command(text, shown or None, at)


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, word in _VARIES:
        line = pattern.sub(word, line)
    return line.strip()


def agrees(shown: list[str], printed: list[str]) -> bool:
    """Is what a page shows what was printed?"""
    expected = [plain(line) for line in shown if line.strip()]
    found = [text for line in printed if line.strip() and not _DRAWN_OVER.match(text := plain(line))]
    pattern = "".join(
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in found)) is not None


class Sandbox:
    """The folders of a page, one bash, and the names that its Python blocks have made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, object] = {}
        for name in ("acq", "mnt/archive", "mnt/tape", "bin"):
            (folder / name).mkdir(parents=True)
        make_run(folder / "acq/run7")
        program = folder / "bin/scopeferry"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scopeferry "$@"\n')
        program.chmod(0o755)
        # Its own environment: no line is drawn over another, and messages are in English.
        env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=env,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bash.stdin.close()
        os.killpg(self.bash.pid, signal.SIGKILL)  # and what a page left running
        self.bash.wait()
        self.bash.stdout.close()

    def inside(self, text: str) -> str:
        """Text of a page with the folders of this test in place of ``/acq`` and ``/mnt``."""
        return _PLACES.sub(lambda match: f"{self.folder}/{match[1]}", text)

    def outside(self, text: str) -> str:
        """The way back."""
        return text.replace(f"{self.folder}/acq", "/acq").replace(f"{self.folder}/mnt", "/mnt")

    def type(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command line."""
        watchdog = threading.Timer(2 * MINUTE_S, os.killpg, (self.bash.pid, signal.SIGKILL))  # what hangs, too
        watchdog.start()
        code = -1
        lines = []
        try:
            self.bash.stdin.write(f"{{\n{self.inside(command)}\n}} </dev/null\n")
            self.bash.stdin.write(f"__code=$?; printf '\\n{MARK} %s\\n' $__code; (exit $__code)\n")
            self.bash.stdin.flush()
            for line in self.bash.stdout:
                if line.startswith(MARK):
                    code = int(line.removeprefix(MARK))
                    break
                lines.append(line)
        finally:
            watchdog.cancel()
        return code, self.outside("".join(lines).removesuffix("\n"))

    def execute(self, source: str) -> Iterator[tuple[int, str, str]]:
        """Execute Python; (line, what a comment says, what the value is) of each value that stands alone."""
        said = comments(source)
        source = self.inside(source)
        for statement in ast.parse(source).body:
            shown = isinstance(statement, ast.Expr) and statement.end_lineno in said
            with redirect_stdout(io.StringIO()):
                value = self._done(statement)
            if shown:
                text = ", ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)
                yield statement.end_lineno, said[statement.end_lineno], self.outside(text).replace("'", '"')

    def _done(self, statement: ast.stmt) -> object:
        if isinstance(statement, ast.Expr):
            return eval(compile(ast.Expression(statement.value), "page", "eval"), self.names)
        exec(compile(ast.Module([statement], []), "page", "exec"), self.names)
        return None


def comments(source: str) -> dict[int, str]:
    """The comments of Python source, by line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def make_run(folder: Path) -> None:
    """A small instrument run, two months old: 24 images and what they are."""
    data = random.Random(7)
    old = time.time() - 60 * 24 * 3600
    (folder / "raw_data").mkdir(parents=True)
    for number in range(1, 25):
        (folder / f"raw_data/Image_{number:03}.tif").write_bytes(data.randbytes(1 << 18))
    (folder / "experiment.json").write_text('{"name": "run7", "channels": ["DAPI", "GFP"]}\n')
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (old, old))


def programs(page: list[Block]) -> set[str]:
    """The programs that the command lines of a page begin with."""
    lines = [command.text for block in page if block.language == "console" for command in commands(block)]
    words = (re.split(r"\s*(?:&&|\|\|?|;)\s*", line.partition(" #")[0]) for line in lines)
    return {re.sub(r"^\(?(\w+=\S* +)*", "", part).split()[0] for parts in words for part in parts if part.strip("( ")}


@pytest.fixture
def read():
    """A function: the blocks of a page."""
    return lambda path: list(blocks(path.read_text("utf-8")))


@pytest.fixture
def typed(read):
    """A function: the command lines of a page that are run, without comments."""
    return lambda path: [
        command.text.partition(" #")[0].rstrip()
        for block in read(path)
        if block.language == "console" and not block.skipped
        for command in commands(block)
    ]


BUILT_IN = {"cd", "echo", "exit", "export", "scopeferry"}


@pytest.fixture
def play(tmp_path):
    """A function that plays a page and fails where the page is not so."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash: another system")

    def play_page(path: Path) -> None:
        found = [block for block in blocks(path.read_text("utf-8")) if not block.skipped]
        for program in sorted(programs(found) - BUILT_IN):
            if shutil.which(program) is None:
                pytest.skip(f"needs {program}: install it")
        with Sandbox(tmp_path.resolve() / "page") as sandbox:
            for block in found:
                place = f"{path}:{block.line}"
                if block.language == "setup":
                    for line in filter(str.strip, block.body.splitlines()):
                        code, printed = sandbox.type(line)
                        assert code == 0, f"{place}: setup: {line}\n{printed}"
                elif block.language == "console":
                    play_console(sandbox, path, block)
                elif block.language == "python":
                    for line, said, value in sandbox.execute(block.body):
                        assert agrees([said], [value]), f"{place}, line {line}: the page says {said}, it is {value}"

    return play_page


def play_console(sandbox: Sandbox, path: Path, block: Block) -> None:
    for command in commands(block):
        code, printed = sandbox.type(command.text)
        place = f"{path}:{command.line}: $ {command.text}"
        assert code == command.exit_code, f"{place}\nexit {code}, the page says {command.exit_code}\n{printed}"
        if command.shown is not None:
            shown = "\n".join(command.shown)
            message = f"{place}\n-- the page shows\n{shown}\n-- it printed\n{printed}"
            assert agrees(command.shown, printed.splitlines()), message
