"""The README's own lines on a machine that has Python, git and make and nothing else; and what can go wrong there.

Each test clones this repository's last commit and builds real environments, so all are slow. The test run
inside the clone is narrowed to a few tests by PYTEST_ADDOPTS; the lines stay as the README has them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = (
    "awk basename cat chmod cp cut date df dirname env expr find flock git grep head id ln ls make mkdir mktemp mv "
    "printf realpath rm sed sh sha256sum sleep sort tail touch tr uname wc"
)
REACHES_INDEX = re.compile(r"^(PIP_|UV_(INDEX|DEFAULT)|SSL_|REQUESTS_CA|.*_proxy$|.*_PROXY$)")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="person: make is for POSIX systems"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="person: a checkout made by git"),
]


def readme_lines() -> list[str]:
    """What the README tells to type first: clone, demo, test."""
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


class Machine:
    """A home, a PATH of links to the few programs there are, and how this site reaches its package index."""

    def __init__(self, folder: Path, *, uv: bool):
        self.folder = folder / "a lab's Größe µm"
        self.folder.mkdir()
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name in [*TOOLS.split(), *(["uv"] if uv else [])]:
            if found := shutil.which(name):
                (bin_folder / name).symlink_to(Path(found).resolve() if name == "uv" else found)
        (bin_folder / "python3").symlink_to(sys._base_executable)
        home = folder / "home"
        home.mkdir()
        self.env = {name: value for name, value in os.environ.items() if REACHES_INDEX.match(name)}
        self.env |= {"PATH": str(bin_folder), "HOME": str(home)}
        self.env |= {"PYTEST_ADDOPTS": "tests/setup/test_lock.py", "TMPDIR": str(folder)}
        self.checkout = self.folder / "scopeferry"

    def sh(self, line: str, *, where: Path | None = None, before: tuple[str, ...] = (), **env: str) -> tuple[int, str]:
        """Exit code and all output of a line typed in the checkout."""
        ran = subprocess.run(
            [*before, shutil.which("sh"), "-c", line],
            cwd=where or self.checkout,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return ran.returncode, ran.stdout

    def clone(self) -> None:
        line = readme_lines()[0].replace("URL", f"'{ROOT}'")
        code, out = self.sh(
            line, where=self.folder, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*"
        )
        assert code == 0, out

    def works(self) -> bool:
        """Does the checkout's environment hold the locked packages and this checkout?"""
        code, out = self.sh(
            ".venv/bin/python -I -c 'import blake3, pytest, mypy, scopeferry; print(scopeferry.__file__)'"
        )
        return code == 0 and str(self.checkout) in out


def unshare(*flags: str) -> tuple[str, ...]:
    """A command that runs another without network (-n) or with mounts of its own (-m)."""
    command = (shutil.which("unshare") or "unshare", "-r", *flags)
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs unshare -r: install util-linux, and allow user namespaces")
    return command


@pytest.fixture(params=["pip", "uv"])
def machine(request, tmp_path) -> Machine:
    if request.param == "uv" and not shutil.which("uv"):
        pytest.skip("needs uv: pip install uv")
    machine = Machine(tmp_path, uv=request.param == "uv")
    machine.clone()
    return machine


@pytest.fixture
def quick(tmp_path) -> Machine:
    """A clone on a machine with uv where there is one, since it is quicker."""
    machine = Machine(tmp_path, uv=True)
    machine.clone()
    return machine


def test_the_readmes_lines_work_and_work_again_without_network(machine):
    for line in readme_lines()[1:]:
        code, out = machine.sh(line)
        assert code == 0, f"{line}\n{out}"
        assert len(out.splitlines()) <= 60
    assert machine.works()
    code, out = machine.sh(readme_lines()[-1], before=unshare("-n"))
    assert code == 0, out
    assert "set-up" not in out
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert machine.sh("make setup") == (0, "")
        times.append(time.perf_counter() - began)
    assert min(times) <= 0.3
    assert machine.sh("git status --porcelain") == (0, "")


def test_set_up_killed_anywhere_is_finished_by_the_next(machine):
    for seconds in (0.1, 0.5, 1, 2, 4, 8):
        process = subprocess.Popen(
            [shutil.which("make"), "setup"],
            cwd=machine.checkout,
            env=machine.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    code, out = machine.sh("make setup")
    assert code == 0, out
    assert machine.works()


def test_a_moved_checkout_works(quick):
    assert quick.sh("make setup")[0] == 0
    quick.checkout = quick.checkout.rename(quick.folder / "moved here")
    code, out = quick.sh("make setup && .venv/bin/scopeferry --version")
    assert code == 0, out
    assert quick.works()


def test_uv_without_its_index_falls_back_to_pip(quick):
    if not shutil.which("uv"):
        pytest.skip("needs uv: pip install uv")
    code, out = quick.sh("make setup", UV_DEFAULT_INDEX="http://127.0.0.1:9/none", UV_HTTP_RETRIES="0")
    assert code == 0, out
    assert "uv could not: no network" in out
    assert quick.works()


def test_no_locale_and_no_home_are_needed(quick):
    del quick.env["HOME"]
    code, out = quick.sh("make setup && make test", LC_ALL="C", LANG="C")
    assert code == 0, out
    assert quick.works()


def test_without_network_one_line_says_so(machine):
    code, out = machine.sh("make setup", before=unshare("-n"))
    assert code != 0
    assert "set-up: no network: the package index cannot be reached" in out
    assert len(out.splitlines()) <= 5


@pytest.mark.parametrize("full", ["checkout", "temporary files"])
def test_without_space_one_line_says_so(tmp_path, full):
    machine = Machine(tmp_path, uv=False)
    machine.clone()
    small = tmp_path / "small"
    small.mkdir()
    line = f"{shutil.which('mount')} -t tmpfs -o size=2m tmpfs '{small}' && "
    if full == "checkout":
        line += f"cp -R Makefile tools pyproject.toml requirements.lock '{small}' && cd '{small}' && make setup"
    else:
        line += f"TMPDIR='{small}' make setup"
    code, out = machine.sh(line, before=unshare("-m"))
    assert code != 0
    assert "set-up: no space: about" in out
    assert len(out.splitlines()) <= 4


def test_the_wheel_works_where_nothing_else_is(quick, tmp_path):
    code, out = quick.sh("make wheel")
    assert code == 0, out
    (wheel,) = (quick.checkout / "dist").glob("*.whl")
    shutil.copy(wheel, tmp_path)
    code, out = quick.sh(f"python3 -m venv 'an env' && 'an env/bin/pip' install -q {wheel.name}", where=tmp_path)
    assert code == 0, out
    code, out = quick.sh("'an env/bin/scopeferry' demo", where=tmp_path)
    assert code == 0, out
    if shutil.which("uv"):
        code, out = quick.sh(f"uv tool run --from ./{wheel.name} scopeferry --version", where=tmp_path)
        assert code == 0, out
