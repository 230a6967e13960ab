"""The receipt: at most 60 lines, the whole truth in JSON, one per generation."""

import hashlib
import json
import os
from pathlib import Path

import scopeferry
from scopeferry.config import KEEP_DEFAULT
from scopeferry.reports import receipt
from scopeferry.reports.receipt import GUARANTEE
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import flip


def test_beside_the_manifest(tmp_path):
    source, copy = tmp_path / "run7", tmp_path / "copy"
    source.mkdir()
    for number in range(5):
        (source / f"{number}").write_bytes(b"x" * number)
    (source / "to").symlink_to("0")
    result = scopeferry.transfer(source, copy, digests=["xxh128", "sha256"])
    records = tmp_path / "copy.scopeferry"
    assert result.receipt == str(records / "receipt.txt")
    text = (records / "receipt.txt").read_text()
    sums = {
        name: hashlib.sha256((records / f"manifest.{name}").read_bytes()).hexdigest() for name in ("xxh128", "sha256")
    }
    for line in (
        "state        complete, exit code 0",
        f"command      scopeferry transfer {source} {copy}",
        f"source       {source}",
        "items        6: 6 copied; 5 verified",
        "bytes        10 (10 B) sent",
        "read back    read back from storage (xxh128)   --verify full",
        "lost         nothing",
        "waived       nothing",
        "retries      0 further tries",
        f"tree         source       sha256:{sums['xxh128']}   of what was read",
        f"             destination  sha256:{sums['xxh128']}   each of 5 files was read back now",
        f"manifest     manifest.xxh128   sha256 {sums['xxh128']}",
        f"             manifest.sha256   sha256 {sums['sha256']}",
        "record       0001.jsonl",
    ):
        assert line in text.splitlines()
    assert text.endswith(GUARANTEE + "\n")
    told = json.loads((records / "receipt.json").read_text())
    assert (told["run"], told["exit_code"], told["manifests"], told["verified"]) == (result.run, 0, sums, 5)
    assert told["tree_digests"]["source"] == told["tree_digests"]["destination"] == result.tree_digest
    assert not [path for path in records.iterdir() if path.name.endswith(".part")]


def test_a_rerun_without_changes_leaves_it(tmp_path):
    source, copy = tmp_path / "run7", tmp_path / "copy"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    first = scopeferry.transfer(source, copy)
    before = os.stat(first.receipt)
    again = scopeferry.transfer(source, copy)
    assert again.receipt == first.receipt
    assert os.stat(first.receipt) == before
    (source / "b").write_bytes(b"b")
    third = scopeferry.transfer(source, copy)
    text = Path(third.receipt).read_text()
    assert "earlier generations: 1\n  0001.jsonl  complete  1 sent or adopted, 1 read back\n" in text
    assert "1 file read back now, 1 there already, see the earlier records" in text


def test_without_read_back_it_does_not_say_verified(tmp_path):
    source = tmp_path / "run7"
    source.mkdir()
    (source / "a").write_bytes(b"a")
    text = Path(scopeferry.transfer(source, tmp_path / "copy", verify="none").receipt).read_text()
    assert "verified" not in text.replace(GUARANTEE, "").replace("0 verified", "")
    assert "not read back" in text
    assert "read back    no   --verify none" in text


def test_sixty_lines_whatever_happened():
    problems = [
        {"code": "SF-204", "path": f"{n}\n" * 50, "message": "read error " * 100, "hint": "h"} for n in range(5000)
    ]
    envelope = {
        "command": "transfer", "run": "r", "exit_code": 3, "state": "partial", "source": "/s" * 5000,
        "destination": "/d\n", "items": 1, "bytes": 1, "verified": 0, "failed": 5000, "elapsed_s": 1.0,
        "problems": problems, "problem_count": 1_000_000, "lost": {f"kind {n}": n for n in range(50)},
        "record": "/r/0001.jsonl",
        "manifests": {f"algo{n}": "0" * 64 for n in range(6)}, "tree_digest": "sha256:0",
    }  # fmt: skip
    header = {"command": "scopeferry transfer " + "x" * 10_000, "digests": ["xxh128"], "started": "now"}
    made = receipt.facts(envelope, header, [{"name": f"{n:04}.jsonl", "counts": {}} for n in range(6)])
    lines = receipt.text(made).splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 500
    assert lines[-len(GUARANTEE.splitlines()) :] == GUARANTEE.splitlines()
    assert "  and 999,992 more, all in the record" in lines
    assert made["tree_digests"]["source"] == ""
    assert json.loads(receipt.as_json(made))["problem_count"] == 1_000_000


def test_it_says_what_was_waived_and_how_often_was_tried_again(tmp_path):
    source, copy = tmp_path / "run7", tmp_path / "copy"
    source.mkdir()
    (source / "a").write_bytes(b"a" * 1000)
    (source / "b").write_bytes(b"b")

    def flip_what_was_written(_answer, fd, _data, at):
        os.pwrite(fd, b"X", at)

    with Steps() as steps:
        steps.after("write_at", flip_what_was_written, when=lambda _fd, data, _at: len(data) == 1000)
        first = scopeferry.transfer(source, copy, select=(("exclude", "b"),), keep=frozenset(KEEP_DEFAULT) - {"xattrs"})
    assert (first.exit_code, first.details["retries"]) == (0, 1)
    lines = Path(first.receipt).read_text().splitlines()
    assert "waived       --no-keep xattrs, --exclude b" in lines
    assert "retries      1 further try" in lines
    flip(copy / "a")
    with Steps() as steps:
        steps.after("write_at", flip_what_was_written, when=lambda _fd, data, _at: len(data) == 1000)
        assert scopeferry.repair(source, copy).exit_code == 0
    assert "retries      1 further try" in Path(first.receipt).read_text().splitlines()
