"""Python environments of their own for the writers and peers whose versions do not live together.

Made when first asked for, below a cache folder of this user, with what is pinned here; one process at a time makes one.
The table is also the list of what the facts in ``sources/ready.py`` were checked against.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.path.expanduser("~"), ".cache", "scopeferry", "environments")  # tests move HOME away: asked early
BUILD_S = 600
NAMES = ("python3.14", "python3.13", "python3.12", "python3.11")


class Unavailable(Exception):
    """An environment cannot be made here; the text is a skip's reason: "needs NAME: how to get it"."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed, and for which Pythons there is a build of all of it: from `oldest` to below `too_new`."""

    packages: tuple[str, ...]
    oldest: tuple[int, int] = (3, 11)
    too_new: tuple[int, int] = (3, 14)


ENVIRONMENTS = {
    "zarr-2.18": Environment(("zarr==2.18.7", "numcodecs==0.15.1", "numpy<2.4")),
    "zarr-3.0.8": Environment(("zarr==3.0.8",)),
    "zarr-3.1": Environment(("zarr==3.1.6",)),
    "zarr-3.4": Environment(("zarr==3.4.2",), oldest=(3, 12), too_new=(3, 15)),
    "zarrs": Environment(("zarrs==0.2.3",)),
    "acquire-zarr": Environment(("acquire-zarr==0.10.0", "numpy")),
    "ome-writers": Environment(("ome-writers==0.3.2", "acquire-zarr==0.10.0", "tensorstore==0.1.86", "zarr==3.1.6")),
    "softcopy": Environment(("softcopy==0.0.13",), too_new=(3, 13)),
}


def python_of(name: str, folder: Path = FOLDER) -> str:
    """Path of the interpreter of an environment, which is made if it is not there; raises Unavailable."""
    wanted = ENVIRONMENTS[name]
    mark = hashlib.sha256(repr((wanted, sys.version)).encode()).hexdigest()[:12]
    place = folder / f"{name}-{mark}"
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    with _alone(folder, place.name):
        if not (place / "ready").exists():
            _make(name, wanted, place, python)
            (place / "ready").touch()
    return str(python)


def _make(name: str, wanted: Environment, place: Path, python: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    base = _interpreter(name, wanted)
    environment = {**os.environ, "HOME": os.path.expanduser("~"), "PIP_CONSTRAINT": ""}
    install = [str(python), "-m", "pip", "install", "-q", "--only-binary", ":all:", *wanted.packages]
    for words in ([base, "-m", "venv", str(place)], install):
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=BUILD_S, env=environment, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"needs environment {name}: {error}") from error
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word why"]
            raise Unavailable(f"needs environment {name}: the package registry ({last[0]})")


def _interpreter(name: str, wanted: Environment) -> str:
    """The running interpreter if it will do, else the newest one on PATH that will."""
    if wanted.oldest <= sys.version_info[:2] < wanted.too_new:
        return sys.executable
    for each in NAMES:
        version = tuple(map(int, each.removeprefix("python").split(".")))
        if wanted.oldest <= version < wanted.too_new:
            beside = sorted(Path(sys.base_prefix).parent.glob(f"*/bin/{each}"))  # where pyenv and uv keep them
            for found in [shutil.which(each), *map(str, beside)]:
                if found and _runs(found):
                    return found
    oldest = ".".join(map(str, wanted.oldest))
    raise Unavailable(f"needs environment {name}: Python {oldest} or newer on PATH")


def _runs(python: str) -> bool:
    """A shim may be there for a Python that is not."""
    words = [python, "-c", "import venv, ensurepip"]
    return subprocess.run(words, capture_output=True, timeout=BUILD_S, check=False).returncode == 0


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """One process at a time, where the system has `flock`."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(folder / f".{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
