"""requirements.lock: fits pyproject.toml, names no place; and the checker notices when not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def check_lock():
    spec = importlib.util.spec_from_file_location("check_lock", ROOT / "tools/check_lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_fits_and_no_committed_file_names_an_index():
    ran = subprocess.run([sys.executable, ROOT / "tools/check_lock.py"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda lock: lock.replace("xxhash==", "yyhash=="), "nothing for `xxhash"),
        (lambda lock: lock.replace("\nblake3==1", "\nblake3==0"), "for `blake3"),
        (lambda lock: lock.replace("\nhatchling==", "\nother=="), "nothing for `hatchling"),
        (lambda lock: "--index-url https://example.org/index\n" + lock, "an address"),
        (lambda lock: lock + "--find-links /srv/wheels\n", "an address"),
        (lambda lock: lock + "tool @ file:///srv/tool.whl\n", "an address"),
        (lambda lock: lock + "extra==1.0\n", "no hash for extra==1.0"),
    ],
)
def test_checker_notices(check_lock, change, complaint):
    assert change(LOCK) != LOCK
    assert complaint in "\n".join(check_lock.lock_problems(PROJECT, change(LOCK)))


def test_checker_notices_a_new_requirement_anywhere(check_lock):
    for table in ("dependencies", "extra", "group", "build"):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        wanted = {
            "dependencies": project["project"]["dependencies"],
            "extra": project["project"].setdefault("optional-dependencies", {}).setdefault("new", []),
            "group": project["dependency-groups"]["test"],
            "build": project["build-system"]["requires"],
        }[table]
        wanted.append("zzz-not-there>=1")
        assert "nothing for `zzz-not-there" in "\n".join(check_lock.lock_problems(project, LOCK)), table
