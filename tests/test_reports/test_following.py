"""How a target of `live` stands: what is said of it, what goes first where there is no room, what is never said."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopeferry.jobs.live_result import LiveResult
from scopeferry.jobs.result import Result
from scopeferry.reports.evidence import last_line
from scopeferry.reports.following import Standing, block, line, to_end
from scopeferry.reports.units import width

RUNNING = Standing(
    "embryo.zarr", "running", newest="0/c/12/0/0", changed_s=0.1, acquired_bytes=812 * 10**9, copied_bytes=805 * 10**9,
    verified_bytes=803 * 10**9, rate=84e6, lag_s=0.2, awaited="file 'complete', or 10 min quiet",
)  # fmt: skip


def test_it_runs():
    assert line(RUNNING, 300) == (
        "embryo.zarr  running (0/c/12/0/0 changed 0.1 s ago)  acquired 812 GB  copied 99.1 %  verified 98.8 %  "
        "84.0 MB/s  lag 0.2 s"
    )
    assert line(RUNNING, 300, awaited=True).endswith("  lag 0.2 s  to end: file 'complete', or 10 min quiet")
    assert to_end(RUNNING, 300) == "embryo.zarr  to end: file 'complete', or 10 min quiet"


def test_what_holds_it_back():
    assert "  held at 60 MB/s: the disk is busy  " in line(Standing(
        "a", "running", pace="held at 60 MB/s: the disk is busy", lag_s=3), 200)  # fmt: skip
    assert line(Standing("a", "running", waiting="the destination"), 200) == "a  waiting for the destination"


def test_it_has_ended():
    ended = Standing(
        "a.zarr", "finished", evidence=(("marker", "complete"), ("structural", "8,000 of 8,000 chunks")),
        acquired_bytes=9, copied_bytes=9, verified_bytes=9, read_back={"storage": 8, "no": 0}, arrays=True, missing=3,
        empty=1_000, awaited="nothing",
    )  # fmt: skip
    assert line(ended, 300, awaited=True) == (
        "a.zarr  finished (marker: complete; structural: 8,000 of 8,000 chunks)  verified 100 %, read back from "
        "storage  missing 3  empty 1,000"
    )
    assert to_end(ended, 300) == ""
    assert (
        line(Standing("a", "failed", failed=2, acquired_bytes=9), 300)
        == "a  failed  copied 0.0 %, not read back  2 failed"
    )


def test_nothing_is_said_of_what_never_began():
    assert line(Standing("a", "interrupted"), 300) == "a  interrupted"
    assert line(Standing("a", "finished", read_back={"storage": 1}), 300) == (
        "a  finished  verified 100 %, read back from storage"
    )


@pytest.mark.parametrize("proof", ["none", "sample:5%"])
def test_verified_is_only_said_of_what_was_read_back(proof):
    for state in ("running", "finished"):
        standing = Standing("a", state, acquired_bytes=9, copied_bytes=9, verified_bytes=9, proof=proof)
        assert "verified" not in line(standing, 300)
    ended = Standing("a", "finished", acquired_bytes=9, copied_bytes=9, read_back={"storage": 1}, proof=proof)
    assert "verified" not in line(ended, 300)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_100_percent_only_where_nothing_is_left(acquired, copied, verified):
    standing = Standing("a", "running", acquired_bytes=acquired, copied_bytes=copied, verified_bytes=verified)
    text = line(standing, 300)
    assert ("copied 100 %" in text) == (0 < acquired <= copied)
    assert ("verified 100 %" in text) == (0 < acquired <= min(copied, verified))
    assert "100.0" not in text


@given(st.integers(1, 200), st.text(max_size=30), st.booleans())
def test_it_never_wraps(columns, name, ascii_only):
    for standing in (RUNNING, Standing(name, "running", newest=name, changed_s=1, awaited=name)):
        for text in (line(standing, columns, ascii_only=ascii_only, awaited=True), to_end(standing, columns)):
            assert width(text) <= columns
            assert "\n" not in text


def test_a_screen_of_targets():
    many = [Standing(f"{number}", "waiting" if number % 2 else "running", awaited="x") for number in range(10)]
    assert block(many, 80, 30)[:3] == ["0  running", "0  to end: x", "2  running"]
    assert block(many, 80, 12) == [f"{number}  {many[number].state}" for number in (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)]
    assert block(many, 80, 4) == ["0  running", "2  running", "4  running", "and 7 more: 2 running, 5 waiting"]
    assert block([Standing("a", "finished")], 80, 4) == []


def live_result(*targets):
    result = LiveResult("live", targets=list(targets))
    result.sum_up()
    return result.as_dict()


def target(state, **evidence):
    made = Result(
        "live", state=state, items=3, copied=3, bytes=9, read_back={"storage": 3}, source="/a", destination="/b"
    )
    made.details.update(evidence=[{"kind": kind, "detail": detail} for kind, detail in evidence.items()])
    return made


def test_the_last_line_names_the_evidence():
    assert "   finished on marker: complete   " in last_line(live_result(target("finished", marker="complete")))
    two = last_line(live_result(target("finished", marker="complete"), target("unknown", quiet="30 min")))
    assert "   1 finished, 1 unknown" in two


def test_a_rerun_with_nothing_to_do_says_what_was_compared():
    again = Standing("a", "finished", acquired_bytes=9, copied_bytes=9, verified_bytes=9, recorded=6)
    assert line(again, 200) == "a  finished  6 files as they were recorded"
    assert "verified 100 %" in line(replace(again, copied=1, read_back={"storage": 1}), 200)
