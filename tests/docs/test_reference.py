"""The reference says what the program does: a renamed option, code, setting, key or column without its page fails."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import scopeferry
from scopeferry.cli.main import COMMANDS
from scopeferry.config import TransferSettings, variables
from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import CODES, PRECEDENCE
from scopeferry.jobs.result import Problem, Result
from scopeferry.kernel import journal as states
from scopeferry.kernel.digest import ALGORITHMS
from scopeferry.kernel.events import KINDS, Event
from scopeferry.kernel.journal import Journal

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"


def words(page: str) -> set[str]:
    """What a page names in code spans, word by word."""
    text = re.sub(r"^```.*?^```$", "", (REFERENCE / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", text)
    return {word for span in spans for word in re.findall(r"[\w./-]+", span)}


def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_command_has_its_section():
    page = (REFERENCE / "commands.md").read_text("utf-8")
    assert set(COMMANDS) <= set(re.findall(r"^## (.*)$", page, re.MULTILINE))


def test_each_problem_code_has_an_entry():
    page = (REFERENCE / "problem-codes.md").read_text("utf-8")
    entries = re.findall(r'^\| <a id="sf-\d+"></a>`(SF-\d+)` \| (\S.*) \| ', page, re.MULTILINE)
    assert sorted(code for code, _ in entries) == sorted(CODES)


def test_each_setting_has_its_variable():
    assert set(variables()) <= words("settings.md")


def test_exit_codes_and_their_order():
    page = (REFERENCE / "exit-codes.md").read_text("utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == set(PRECEDENCE)
    assert {entry[0] for entry in CODES.values()} <= set(PRECEDENCE)
    order = re.search(r"the first in this order counts: ([\d, ]+)\.", page)[1]
    assert tuple(map(int, order.split(", "))) == PRECEDENCE


def test_the_journal_s_tables_columns_and_states(tmp_path):
    with Journal(str(tmp_path / "journal.sqlite")):
        pass
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        columns = {row[1] for table in tables for row in db.execute(f"PRAGMA table_info({table})")}
    db.close()
    assert {*tables, *columns} <= words("journal.md")
    shown = re.findall(r"^\| (\d) \| `(\w+)` \|", (REFERENCE / "journal.md").read_text("utf-8"), re.MULTILINE)
    assert {int(number) for number, _ in shown} == {states.DONE, *states.OPEN, states.FAILED, states.CONFLICT}
    assert all(getattr(states, name) == int(number) for number, name in shown)


@pytest.mark.parametrize("name", [name for name in scopeferry.__all__ if not name.startswith("_")])
def test_each_function_and_parameter_is_named(name):
    function = getattr(scopeferry, name)
    if inspect.isfunction(function):
        assert {name, *inspect.signature(function).parameters} <= words("api.md")


@pytest.mark.parametrize("kind", [TransferSettings, Target, LiveSettings, Result, Problem, Event])
def test_each_field_is_named(kind):
    assert {field.name for field in dataclasses.fields(kind)} <= words("api.md")


def test_each_kind_of_event_and_digest_is_named():
    assert set(KINDS) <= words("api.md")
    assert {tag for _, _, _, tag in ALGORITHMS.values()} <= words("manifest-and-record.md")


@pytest.fixture
def life(tmp_path):
    """A copy that has seen everything: all kinds, odd names, a refusal, a replacement, damage, repair, cleaning."""
    source, copy = tmp_path / "acq/run7", tmp_path / "mnt/run7"
    (source / "raw_data").mkdir(parents=True)
    copy.parent.mkdir()
    for name in ("a.tif", "raw_data/b.tif", "raw_data/c.tif"):
        (source / name).write_bytes(name.encode() * 99)
    os.link(source / "a.tif", source / "d.tif")
    (source / "link").symlink_to("a.tif")
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.tif")).write_bytes(b"not UTF-8")
    results = [scopeferry.transfer(source, copy, digests=["xxh128", "md5"])]
    assert results[0].ok, results[0].problems
    (copy / "raw_data/b.tif").write_bytes(b"damaged")
    results += [scopeferry.verify(copy), scopeferry.transfer(source, copy), scopeferry.repair(source, copy)]
    (source / "raw_data/c.tif").write_bytes(b"longer " * 999)
    (source / "e.tif").write_bytes(b"ours")
    (copy / "e.tif").write_bytes(b"theirs")
    results += [scopeferry.transfer(source, copy), scopeferry.transfer(source, copy, on_conflict="replace")]
    results += [scopeferry.clean(source, [copy], yes=True)]
    return results, Path(f"{copy}.scopeferry")


def test_each_key_of_record_receipt_and_envelope_is_named(life):
    results, records = life
    assert [result.exit_code for result in results] == [0, 4, 5, 0, 5, 0, 0]
    named = words("manifest-and-record.md")
    for record in records.glob("*.jsonl"):
        for line in map(json.loads, record.read_text("utf-8").splitlines()):
            assert set(line) - named == set(), line
            assert {line.get("action", "copied"), line.get("kind", "file"), line.get("state", "complete")} <= named
    assert set(Result("transfer").as_dict()) <= named
