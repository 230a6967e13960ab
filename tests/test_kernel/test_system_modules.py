"""Two modules, one set of names: whoever calls `publish.system` need not know which one it is."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.kernel import _posix, _windows, publish

SOURCES = Path(publish.__file__).parent
CONSTANTS = ("BAD_NAME", "CAN_KEEP", "ENDINGS", "FORBIDDEN", "GONE", "NO_SPACE", "RESERVED")


def public(module) -> dict[str, object]:
    """What the file itself defines under a public name."""
    tree = ast.parse(Path(module.__file__).read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names.update(item.id for item in ast.walk(target) if isinstance(item, ast.Name))
    return {name: getattr(module, name) for name in names if not name.startswith("_")}


def test_both_define_the_same_names():
    assert set(public(_posix)) == set(public(_windows)) - {"Stat", "extended"}


@pytest.mark.parametrize("name", sorted(name for name, found in public(_windows).items() if inspect.isfunction(found)))
def test_functions_take_the_same_arguments(name):
    if name in {"extended", "fstat"}:
        return
    one, other = (inspect.signature(getattr(module, name)) for module in (_posix, _windows))
    assert list(one.parameters) == list(other.parameters)
    assert [p.default for p in one.parameters.values()] == [p.default for p in other.parameters.values()]
    assert one.return_annotation == other.return_annotation


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_of_one_kind(name):
    assert type(getattr(_posix, name)) is type(getattr(_windows, name))


def test_every_call_by_others_is_defined():
    called = set()
    for path in SOURCES.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "system":
                called.add(node.attr)
    assert called - set(public(_windows)) == set()


def test_nothing_but_the_system_modules_takes_a_folder_descriptor():
    """``dir_fd`` and ``os.fstat`` say other things, or nothing, on Windows."""
    allowed = {"_posix.py", "_windows.py", "trees.py", "steps.py", "faulty.py", "kinds.py"}
    found = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES.parent.rglob("*.py")
        if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg in {"dir_fd", "src_dir_fd", "dst_dir_fd"}
    ]
    assert found == []


def test_a_rerun_needs_no_ctypes():
    code = (
        "import sys; import scopeferry.kernel._windows, scopeferry.kernel._posix; "
        "assert not {'ctypes', 'msvcrt', 'mmap', 'io_'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
