"""What a listing leaves out stands in the record, once; where things of ours lie, and what a rehearsal touches."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from scopeferry.errors import Interrupted, UsageError
from scopeferry.jobs import transfer as job
from scopeferry.kernel.task import Control


@pytest.fixture
def odd(ferry):
    """A FIFO, a link, and other content at the destination."""
    (ferry.src / "a").write_bytes(b"ours")
    (ferry.src / "b").write_bytes(b"b")
    (ferry.src / "link").symlink_to("a")
    os.mkfifo(ferry.src / "pipe")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"theirs")
    return ferry


def lines(ferry) -> list[list[dict]]:
    """The entries of each generation."""
    paths = sorted(ferry.records.glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()][1:-1] for path in paths]


def left(entries: list[dict]) -> dict[str, tuple]:
    return {e["path"]: (e["kind"], e["action"], e["problem"]["code"]) for e in entries if "problem" in e}


def test_what_is_left_out_stands_in_the_record_once(odd):
    odd.run(5, keep=frozenset({"times", "mode"}))
    expected = {
        "pipe": ("other", "skipped", "SF-901"),
        "link": ("link", "skipped", "SF-904"),
        "a": ("file", "conflict", "SF-501"),
    }
    assert left(lines(odd)[0]) == expected
    assert [e["lost"] for e in lines(odd)[0] if e["path"] == "link"] == [["links"]]
    odd.run(5, keep=frozenset({"times", "mode"}))
    assert len(lines(odd)) == 1  # nothing is news


def test_a_conflict_that_comes_back_is_said_again(odd):
    odd.run(5)
    (odd.dst / "a").unlink()
    odd.run(0)
    (odd.dst / "a").write_bytes(b"others")
    odd.run_unchecked(5)
    assert left(lines(odd)[-1]) == {"a": ("file", "conflict", "SF-501")}


def test_a_folder_that_cannot_be_listed_stands_in_the_record(ferry, monkeypatch):
    (ferry.src / "sub").mkdir()
    (ferry.src / "b").write_bytes(b"b")
    real = job.system.scan

    def scan(folder):
        if os.readlink(f"/proc/self/fd/{folder}") == str(ferry.src / "sub"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(job.system, "scan", scan)
    ferry.run(3)
    assert left(lines(ferry)[0]) == {"sub": ("folder", "failed", "SF-205")}


def test_every_event_names_its_run(odd):
    events = []
    result = odd.run(5, on_event=events.append)
    assert {event.run for event in events} == {result.run}
    assert "skipped" in {event.kind for event in events}


def test_folders_of_the_state_are_private(odd, state):
    odd.run(5)
    folders = [state, *(path for path in Path(state).rglob("*") if path.is_dir())]
    ours = [path for path in folders if "scopeferry" in path.parts]
    assert ours
    assert {stat.S_IMODE(path.stat().st_mode) for path in ours} == {0o700}


@pytest.mark.parametrize("what", ["journal", "records"])
def test_nothing_of_ours_grows_in_the_source(ferry, what):
    (ferry.src / "a").write_bytes(b"a")
    with pytest.raises(UsageError) as caught:
        ferry.run(**{what: str(ferry.src / "mine")})
    assert caught.value.code == "SF-105"
    assert os.listdir(ferry.src) == ["a"]
    assert not ferry.dst.exists()


def test_a_rehearsal_leaves_a_damaged_journal_alone(ferry, state):
    (ferry.src / "a").write_bytes(b"a")
    done = ferry.run(0)
    path = Path(done.details["journal"])
    path.write_bytes(b"damaged" * 1000)
    before = sorted(str(one) for one in Path(state).rglob("*"))
    ferry.run(0, dry_run=True)
    assert sorted(str(one) for one in Path(state).rglob("*")) == before
    assert path.read_bytes() == b"damaged" * 1000


def test_an_interrupt_of_a_large_copy_leaves_the_manifest_to_the_next_run(ferry, monkeypatch):
    for number in range(60):
        (ferry.src / f"{number:03}").write_bytes(b"%d" % number)
    monkeypatch.setattr(job, "AT_ONCE", 10)
    control = Control()

    def stop(event) -> None:
        if event.kind == "done":
            control.stop(Interrupted("interrupted"))

    assert ferry.run_any(control=control, on_event=stop, workers=1).exit_code == 130
    assert not (ferry.records / "manifest.xxh128").exists()
    assert ferry.run(0).state == "complete"
    assert len(ferry.manifest()) == 60
