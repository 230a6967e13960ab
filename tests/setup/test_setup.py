"""tools/setup.sh: what it does again and what not, with a uv that makes empty environments and notes its calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = Path(sys._base_executable)
NEEDED = [
    "awk",
    "cat",
    "cksum",
    "cut",
    "date",
    "df",
    "dirname",
    "env",
    "flock",
    "grep",
    "mv",
    "rm",
    "sh",
    "sha256sum",
    "sleep",
    "tail",
    "tr",
]
UV = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in *"$FAIL_AT"*) [ -z "$FAIL_AT" ] || { echo "uv: $FAILURE" >&2; exit 1; } ;; esac
case $1 in venv) exec "$BASE" -m venv --without-pip .venv ;; esac
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="person: set-up by make is for POSIX systems")


class Checkout:
    """A folder with what set-up reads, and a PATH that holds nothing else than it needs."""

    def __init__(self, folder: Path):
        self.folder = folder / "a copy, größer"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        (self.folder / "tools").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / "tools/setup.sh", self.folder / "tools")
        for name in ("requirements.lock", "pyproject.toml"):
            (self.folder / name).write_text(f"# {name}\n")
        for name in NEEDED:
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.program("uv", UV)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *args: str, fail_at: str = "", failure: str = "it broke") -> tuple[int, list[str], list[str]]:
        """Exit code, lines said, calls of uv (first two words)."""
        self.calls.write_text("")
        env = {"PATH": str(self.bin), "BASE": str(BASE), "CALLS": str(self.calls)}
        env |= {"FAIL_AT": fail_at, "FAILURE": failure}
        ran = subprocess.run(
            ["sh", str(self.folder / "tools/setup.sh"), *args],
            env=env,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.stdout == ""
        return ran.returncode, ran.stderr.splitlines(), self.calls.read_text().splitlines()

    def stamps(self) -> list[str]:
        return sorted(path.name.partition("-")[0] for path in self.folder.glob(".venv/*-*"))


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def kinds(calls: list[str]) -> list[str]:
    return [
        "venv" if call.startswith("venv") else "lock" if "--require-hashes" in call else "project" for call in calls
    ]


def test_first_call_builds_and_the_second_does_nothing_fast(checkout):
    code, said, calls = checkout.run()
    assert (code, kinds(calls)) == (0, ["venv", "lock", "project"]), said
    assert "--only-binary :all: -r requirements.lock" in calls[1]
    assert "--no-deps --no-build-isolation -e ." in calls[2]
    assert checkout.stamps() == ["locked", "ready"]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        assert checkout.run() == (0, [], [])
        times.append(time.perf_counter() - began)
    assert min(times) <= 0.3


def test_a_changed_project_keeps_the_packages_and_a_changed_lock_does_not(checkout):
    checkout.run()
    (checkout.folder / "pyproject.toml").write_text("# other\n")
    assert kinds(checkout.run()[2]) == ["project"]
    assert checkout.run() == (0, [], [])
    (checkout.folder / "requirements.lock").write_text("# other\n")
    assert kinds(checkout.run()[2]) == ["venv", "lock", "project"]
    assert checkout.run() == (0, [], [])
    assert checkout.stamps() == ["locked", "ready"]


@pytest.mark.parametrize("step", ["venv", "-r requirements.lock", "-e ."])
def test_what_was_interrupted_is_done_by_the_next_call(checkout, step):
    checkout.program("python3", '#!/bin/sh\necho "old 3.9"\n')
    assert checkout.run(fail_at=step)[0] == 1
    assert "ready" not in checkout.stamps()
    code, _, calls = checkout.run()
    assert (code, kinds(calls)) == (0, ["project"] if step == "-e ." else ["venv", "lock", "project"])
    assert checkout.run() == (0, [], [])


def spoil_nothing_there(venv: Path) -> None:
    shutil.rmtree(venv)


def spoil_by_an_empty_folder(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.mkdir()


def spoil_by_a_file(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.write_text("a file")


def spoil_by_a_dangling_link(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.symlink_to("/nowhere")


def spoil_by_one_of_somebody_else(venv: Path) -> None:
    shutil.rmtree(venv)
    subprocess.run([BASE, "-m", "venv", "--without-pip", venv], check=True)


def spoil_by_a_lost_interpreter(venv: Path) -> None:
    for link in venv.glob("bin/python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")


def spoil_by_a_copy_from_another_place(venv: Path) -> None:
    venv.rename(venv.with_name("moved"))
    subprocess.run(["cp", "-a", venv.with_name("moved"), venv], check=True)
    for stamp in venv.glob("ready-*"):  # as if the interpreter lay elsewhere when the stamp was written
        stamp.rename(stamp.with_name("ready-0123456789abcdef"))
    for stamp in venv.glob("locked-*"):
        stamp.rename(stamp.with_name("locked-0123456789abcdef"))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_nothing_there,
        spoil_by_an_empty_folder,
        spoil_by_a_file,
        spoil_by_a_dangling_link,
        spoil_by_one_of_somebody_else,
        spoil_by_a_lost_interpreter,
        spoil_by_a_copy_from_another_place,
    ],
)
def test_a_deleted_or_foreign_environment_is_built_anew(checkout, spoil):
    checkout.run()
    spoil(checkout.folder / ".venv")
    code, said, calls = checkout.run()
    assert (code, kinds(calls)) == (0, ["venv", "lock", "project"]), said
    assert checkout.run() == (0, [], [])
    assert not list(checkout.folder.glob(".venv-old*"))


def test_a_moved_checkout_is_set_up_anew(checkout):
    checkout.run()
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("elsewhere"))
    code, _, calls = checkout.run()
    assert (code, kinds(calls)) == (0, ["venv", "lock", "project"])
    assert checkout.run() == (0, [], [])


def test_two_at_once_build_once(checkout):
    if not shutil.which("flock"):
        pytest.skip("needs flock: install util-linux")
    slow = UV.replace("case $1", "sleep 0.3; case $1")
    checkout.program("uv", slow)
    checkout.calls.write_text("")
    env = {"PATH": str(checkout.bin), "BASE": str(BASE), "CALLS": str(checkout.calls), "FAIL_AT": "", "FAILURE": ""}
    command = ["sh", str(checkout.folder / "tools/setup.sh")]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert kinds(checkout.calls.read_text().splitlines()) == ["venv", "lock", "project"]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("old 3.9", "Python 3.9 is too old: install Python 3.11 or newer"),
        ("bare 3.12", "Python 3.12 has no ensurepip: install it (Debian, Ubuntu: apt install python3.12-venv)"),
        (None, "no Python found: install Python 3.11 or newer"),
    ],
)
def test_without_a_fit_python_one_line_says_what_to_install(checkout, answer, complaint):
    (checkout.bin / "uv").unlink()
    if answer:
        checkout.program("python3", f'#!/bin/sh\necho "{answer}"\n')
    code, said, _ = checkout.run()
    assert code == 1
    assert len(said) == 1
    assert complaint in said[0]


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        ("OSError: [Errno 28] No space left on device", "no space: about"),
        ("error: Failed to fetch: dns error: failed to lookup address", "no network: "),
        ("NewConnectionError(: Failed to establish a new connection", "no network: "),
        ("invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "not the one requirements.lock names"),
        ("ERROR: No matching distribution found for blake3==1.0.5", "no ready-made build"),
    ],
)
def test_a_failed_installation_is_one_line_and_pip_is_tried(checkout, printed, complaint):
    checkout.program("python3", '#!/bin/sh\ncase "$*" in *ensurepip*) echo "good 3.11";; *) exit 1;; esac\n')
    code, said, calls = checkout.run(fail_at="-r requirements.lock", failure=printed)
    assert (code, kinds(calls)) == (1, ["venv", "lock"])
    assert [line for line in said if complaint in line]
    assert [line for line in said if "python3 and pip" in line]
    assert len(said) <= 4


def test_asking_for_a_python_builds_with_it_once(checkout):
    checkout.run()
    assert checkout.run(str(BASE)) == (0, [], [])
    checkout.program("other", '#!/bin/sh\ncase "$*" in *base_prefix*) printf "other|/other|";; *) exit 1;; esac\n')
    _, _, calls = checkout.run("other")
    assert kinds(calls)[:1] == ["venv"]
    assert "--python other" in calls[0]
