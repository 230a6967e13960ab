"""Does requirements.lock fit pyproject.toml, and name no place? Reads the two files, asks nobody.

Every requirement of the package, its extras, its dependency groups and its build must be met by a pin; every pin must
carry a hash; and neither the lock nor any other committed text may hold the address of a package index.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Iterator

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; ([^\\]*))?")
ADDRESS = re.compile(r"://|^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b| @ |^[./]")
INDEX = re.compile(r"(pypi|pythonhosted|npmjs|yarnpkg)\.(org|com)|/simple/?[\"'\s]|registry\.[a-z]+\.[a-z]+/")


def pins(lock: str) -> dict[str, set[str]]:
    """Pinned versions by canonical name; one name may have several, for different systems or Pythons."""
    found: dict[str, set[str]] = {}
    for line in lock.splitlines():
        if match := PIN.match(line):
            found.setdefault(canonicalize_name(match[1]), set()).add(match[2])
    return found


def requirements(project: dict[str, Any]) -> Iterator[tuple[str, Requirement]]:
    """Each requirement of pyproject.toml with the table it stands in."""
    tables: dict[str, list[Any]] = {
        "build-system": project["build-system"]["requires"],
        "project": project["project"]["dependencies"],
        **{f"extra {name}": wants for name, wants in project["project"].get("optional-dependencies", {}).items()},
        **{f"group {name}": wants for name, wants in project.get("dependency-groups", {}).items()},
    }
    own = canonicalize_name(project["project"]["name"])
    for table, wants in tables.items():
        for want in wants:
            if isinstance(want, str) and canonicalize_name(Requirement(want).name) != own:
                yield table, Requirement(want)


def lock_problems(project: dict[str, Any], lock: str) -> Iterator[str]:
    """What is wrong with the lock, one line each; nothing when it fits."""
    pinned = pins(lock)
    for table, want in requirements(project):
        versions = pinned.get(canonicalize_name(want.name), set())
        if not any(want.specifier.contains(version, prereleases=True) for version in versions):
            have = ", ".join(sorted(versions)) or "nothing"
            yield f"requirements.lock has {have} for `{want}` ({table}): run `make lock`"
    for number, line in enumerate(lock.splitlines(), 1):
        if not line.startswith("#") and ADDRESS.search(line):
            yield f"requirements.lock:{number}: an address or a path: {line.strip()}"
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock)
    for block in blocks:
        if PIN.match(block) and "--hash=sha256:" not in block:
            yield f"requirements.lock: no hash for {block.splitlines()[0]}"


def address_problems(root: Path) -> Iterator[str]:
    """Committed lines that hold the address of a package index."""
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, check=False).stdout
    for name in filter(None, listed.decode("utf-8", "surrogateescape").split("\0")):
        path = root / name
        if name == "tools/check_lock.py" or not path.is_file():
            continue
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            if INDEX.search(line):
                yield f"{name}:{number}: the address of a package index: {line.strip()[:80]}"
        if path.name == "uv.lock":
            yield f"{name} holds addresses: remove it from git"


def main() -> int:
    """Print each problem; 1 if there is any."""
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    lock = (root / "requirements.lock").read_text("utf-8")
    problems = [*lock_problems(project, lock), *address_problems(root)]
    print("\n".join(problems) or f"requirements.lock fits pyproject.toml ({len(pins(lock))} packages)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
