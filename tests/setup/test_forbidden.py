"""What the code never does: rules that a linter checks, or a look at the syntax tree (``transfer.md`` 4, traps)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.kernel.digest import ALGORITHMS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/scopeferry"
RUFF = Path(sys.executable).with_name("ruff")

FORBIDDEN = {
    'os.replace("a", "b")': "TID251",
    'os.rename("a", "b")': "TID251",
    'os.open("a", os.O_WRONLY | os.O_TRUNC)': "TID251",
    'shutil.copy("a", "b")': "TID251",
    'shutil.copy2("a", "b")': "TID251",
    'shutil.copyfile("a", "b")': "TID251",
    'shutil.copytree("a", "b")': "TID251",
    'shutil.move("a", "b")': "TID251",
    'os.system("cp a b")': "TID251",
    'subprocess.run("cp a b", shell=True, check=True)': "S602",
}


def complaints(code: str, name: str) -> str:
    text = f"import os\nimport shutil\nimport subprocess\n\nprint(os, shutil, subprocess)\n{code}\n"
    command = [RUFF, "check", "--output-format", "concise", "--stdin-filename", name, "-"]
    return subprocess.run(command, check=False, input=text, capture_output=True, text=True, cwd=ROOT).stdout


@pytest.mark.skipif(not RUFF.exists(), reason="needs ruff: make setup")
@pytest.mark.parametrize("code", FORBIDDEN)
def test_nothing_else_renames_copies_empties_or_asks_a_shell(code):
    assert FORBIDDEN[code] in complaints(code, "src/scopeferry/copying/some.py")
    assert "TID251" not in complaints(code, "src/scopeferry/kernel/_posix.py")


def _docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            found.add(id(body[0].value))
    return found


def test_only_digest_names_algorithms():
    named = []
    for path in SOURCE.rglob("*.py"):
        if path.is_relative_to(SOURCE / "testing") or path == SOURCE / "kernel/digest.py":
            continue
        tree = ast.parse(path.read_text())
        prose = _docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in ALGORITHMS and id(node) not in prose:
                named.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.value}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None)]
                named += [
                    f"{path.relative_to(ROOT)}:{node.lineno} {one}"
                    for one in names
                    if one in {"hashlib", "xxhash", "blake3"}
                ]
    assert named == []
