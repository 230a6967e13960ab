"""What the tests of a transfer share: a source, a destination, and a run whose promises are checked every time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

import scopeferry
from scopeferry.jobs.result import Result
from scopeferry.stores import local
from scopeferry.testing.trees import differences, parts


@dataclass
class Ferry:
    """A source and a destination; `run` transfers, and checks what must hold after any run."""

    src: Path
    dst: Path

    @property
    def records(self) -> Path:
        return self.dst.with_name(self.dst.name + ".scopeferry")

    def run(self, expect: int | None = None, *, src=None, dst=None, **options) -> Result:
        result = scopeferry.transfer(src or self.src, dst or self.dst, **options)
        told = [(problem.code, problem.path, problem.message) for problem in result.problems]
        if expect is not None:
            assert result.exit_code == expect, told
        if self.dst.is_dir() and not options.get("dry_run"):
            assert parts(self.dst) == []
            self.check_manifest()
        if result.exit_code == 0 and not options.get("dry_run"):
            assert result.state == "complete"
        return result

    def run_unchecked(self, expect: int, **options) -> Result:
        """A run after which a line of the manifest is known to be untrue, for somebody has changed a file of ours."""
        result = scopeferry.transfer(self.src, self.dst, **options)
        assert result.exit_code == expect, [(problem.code, problem.path) for problem in result.problems]
        assert parts(self.dst) == []
        return result

    def run_any(self, **options) -> Result:
        """A run of which nothing is known but that it comes back."""
        return scopeferry.transfer(self.src, self.dst, **options)

    def manifest(self) -> dict[str, str]:
        """Path -> hex of the working manifest; escaped names are left out."""
        text = (self.records / "manifest.xxh128").read_bytes()
        found = re.findall(rb"^XXH128 \((.*)\) = ([0-9a-f]{32})$", text, re.MULTILINE)
        return {os.fsdecode(path): digest.decode() for path, digest in found}

    def check_manifest(self) -> dict[str, str]:
        """Every line of the working manifest is true, as a standard checker sees it; path -> hex."""
        manifest = self.records / "manifest.xxh128"
        if not manifest.exists() or not manifest.stat().st_size:
            return {}
        done = subprocess.run(
            ["xxhsum", "-c", "--strict", "--quiet", manifest],
            check=False,
            cwd=self.dst,
            capture_output=True,
            text=True,
            errors="replace",
        )
        lines = manifest.read_bytes().splitlines()
        beyond = any(line.startswith(b"\\") or len(line) > 4000 for line in lines)  # what this version cannot read
        assert done.returncode == 0 or beyond, done.stdout + done.stderr
        return self.manifest()

    def same(self) -> None:
        assert differences(self.src, self.dst) == []

    def lines(self, generation: int = -1) -> list[dict]:
        """The objects of a record, the newest unless told."""
        names = sorted(self.records.glob("[0-9]*.jsonl"))
        return [json.loads(line) for line in names[generation].read_text().splitlines()]

    def entry(self, path: str, generation: int = -1) -> dict:
        found = [line for line in self.lines(generation) if line.get("path") == path]
        assert found, f"{path} is not in the record"
        return found[-1]

    def aside(self) -> list[bytes]:
        """The content of each file in set_aside, in the order of their names."""
        return [path.read_bytes() for path in sorted((self.records / "set_aside").rglob("*")) if path.is_file()]


@pytest.fixture
def ferry(tmp_path) -> Ferry:
    """An empty source folder, and a destination that is not there yet."""
    (tmp_path / "src").mkdir()
    return Ferry(tmp_path / "src", tmp_path / "dst")


@pytest.fixture
def quick(monkeypatch):
    """No pauses between the tries at a source that moves."""
    monkeypatch.setattr(local, "CHANGED_WAITS_S", (0.001, 0.001, 0.001))


def codes(result: Result) -> dict[str, list[str]]:
    """Problem code -> the paths it was said of."""
    found: dict[str, list[str]] = {}
    for problem in result.problems:
        found.setdefault(problem.code, []).append(problem.path)
    return found


@pytest.fixture(name="codes")
def _codes():
    return codes


@pytest.fixture
def sha():
    """The SHA-256 of a file, short."""
    return lambda path: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
