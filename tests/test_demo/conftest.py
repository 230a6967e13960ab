"""The demo as a child, and demos in this process, whose commands may be broken on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.jobs import demo as job

#: In a child of the demo, before the command itself: what the test wants done to it.
SABOTAGE = """
import os, sys
words = sys.orig_argv[4:]
if "scopeferry.testing.leash" in sys.orig_argv and words[0] == {command!r}:
    with open({counter!r}, "ab") as file:
        file.write(b".")
        file.flush()
        nth = os.fstat(file.fileno()).st_size
    if nth == {nth}:
        import scopeferry
        from pathlib import Path
        source, copy = Path("instrument/plate.ome.zarr"), Path("archive/plate.ome.zarr")
        Path({fired!r}).touch()
        {code}
"""


@pytest.fixture
def command(state, tmp_path):
    """Arguments of Popen or run for a demo with these options: the real command in an environment of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SCOPEFERRY_")}

    def made(*options: object, **more: object) -> dict:
        environment = {**kept, "PYTHONWARNINGS": "error", "TMPDIR": str(tmp_path)}
        return {
            "args": [sys.executable, "-m", "scopeferry", "demo", *map(str, options)],
            "cwd": tmp_path,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **more,
        }

    return made


@pytest.fixture
def shown(command):
    """Run the command to its end."""
    return lambda *options, **more: subprocess.run(**command(*options, **more), check=False, timeout=600)


@pytest.fixture
def play(tmp_path):
    """A demo at full speed; its result."""
    return lambda **options: job.demo(tmp_path / "demo", **{"speed": 50, "say": print, **options})


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Have the nth call of a command, in a child of the demo, begin with some code; answers whether it ran."""

    def sabotage(command: str, nth: int, code: str):
        fired = tmp_path / "fired"
        text = SABOTAGE.format(command=command, nth=nth, counter=str(tmp_path / "count"), fired=str(fired), code=code)
        (tmp_path / "site").mkdir()
        (tmp_path / "site/sitecustomize.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
        return fired.exists

    return sabotage


@pytest.fixture
def processes():
    """The processes that work in a folder or below it, by id: their commands."""

    def working_in(folder: Path) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return {number: words for number, words in found.items() if words}

    return working_in
