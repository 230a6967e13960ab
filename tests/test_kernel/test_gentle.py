"""Stepping back for the writer: priorities of threads, and the rate against pressure files that a test writes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time

import pytest

from scopeferry.kernel import gentle
from scopeferry.kernel.gentle import FASTER, FLOOR, SLOWER, START, Pace, be_gentle, group_pressure

CHANCE = random.Random(1)
linux = pytest.mark.skipif(sys.platform != "linux", reason="person: a Linux system")


class Clock:
    """Of the rate: seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gentle, "time", clock)
    return clock


class Pressure:
    def __init__(self, path):
        self.path, self.total = path, 0
        self.stall(0)

    def stall(self, seconds):
        self.total += int(seconds * 1e6)
        some = f"some avg10=0.00 avg60=0.00 avg300=0.00 total={self.total}\n"
        self.path.write_text(some + "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")


@pytest.fixture
def pressure(tmp_path):
    return Pressure(tmp_path / "io.pressure")


def interval(pace, clock, pressure=None, stalled=0.0):
    """One sample in which so large a part of the time was stalled."""
    if pressure is not None:
        pressure.stall(stalled * gentle.SAMPLE_S)
    clock.now += gentle.SAMPLE_S
    pace(1)


def busy(pace, clock, writer, size=1 << 20):
    """It writes, in no rhythm."""
    writer.wrote(int((clock.now - CHANCE.random()) * 1e9), size)


@linux
def test_only_our_own_threads_step_back():
    seen = {}

    def thread():
        seen["notes"] = be_gentle()
        child = threading.Thread(target=lambda: seen.update(child=threading.get_native_id(), nice=nice()))
        child.start()
        child.join()
        seen["own"] = nice()
        asked = subprocess.run(
            ["ionice", "-p", str(threading.get_native_id())], capture_output=True, text=True, check=True
        )
        seen["class"] = asked.stdout.strip()

    def nice():
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = nice()
    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    assert (seen["own"], seen["nice"], seen["class"], seen["notes"]) == (19, 19, "idle", [])
    assert nice() == before


@linux
def test_what_cannot_be_had_is_a_note(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr("scopeferry.kernel._posix._idle_class", refuse)
    notes = []
    worker = threading.Thread(target=lambda: notes.extend(be_gentle()))
    worker.start()
    worker.join()
    assert notes == ["nice 19: Operation not permitted", "disk class idle: Operation not permitted"]
    assert be_gentle("off") == []


def test_without_an_active_writer_only_the_limit_holds(clock, pressure):
    for limit in (None, 7e6):
        pace = Pace(limit, pressure=str(pressure.path))
        writer = pace.writer()
        for _ in range(5):
            interval(pace, clock, pressure, 1.0)
        assert (pace.rate, pace.cause) == (limit, "limit" if limit else "")
        busy(pace, clock, writer)
        interval(pace, clock, pressure, 1.0)
        assert pace.rate == min(START, limit or START) or pace.rate < START
        writer.finished()
        interval(pace, clock, pressure, 1.0)
        assert pace.rate == limit
        busy(pace, clock, writer)
        clock.now += gentle.SILENT_S + 1
        interval(pace, clock, pressure, 1.0)
        assert pace.rate == limit


def test_the_rate_falls_while_the_writer_is_held_up_and_rises_after(clock, pressure):
    pace = Pace(pressure=str(pressure.path))
    writer = pace.writer()
    interval(pace, clock, pressure)
    busy(pace, clock, writer)
    interval(pace, clock, pressure, 0.9)
    assert pace.rate == pytest.approx(START * SLOWER)
    assert "system's io.pressure" in pace.cause
    assert "90%" in pace.cause
    for _ in range(30):
        busy(pace, clock, writer)
        interval(pace, clock, pressure, 0.9)
    assert pace.rate == FLOOR
    for number in range(1, 4):
        busy(pace, clock, writer)
        interval(pace, clock, pressure, 0.5)
        assert pace.rate == pytest.approx(FLOOR + number * FASTER)


def test_the_floor_is_the_writers_rate_if_that_is_lower(clock, pressure):
    pace = Pace(pressure=str(pressure.path))
    writer = pace.writer()
    for _ in range(60):
        busy(pace, clock, writer, 200_000)  # 1 MB/s
        interval(pace, clock, pressure, 1.0)
    assert pace.rate == pytest.approx(1e6, rel=0.1)


def test_the_limit_is_never_passed(clock, pressure):
    pace = Pace(3e6, pressure=str(pressure.path))
    writer = pace.writer()
    for _ in range(20):
        busy(pace, clock, writer)
        interval(pace, clock, pressure, 0.0)
        assert (pace.rate, pace.cause) == (3e6, "limit")


def test_chunks_that_come_late_slow_us_and_a_pause_does_not(clock):
    pace = Pace(pressure="/nowhere")
    writer = pace.writer()
    for _ in range(30):
        writer.wrote(int(clock.now * 1e9), 1 << 20)
        interval(pace, clock)
    assert pace.cause.startswith("chunks late")
    before = pace.rate
    for _ in range(3):
        interval(pace, clock)
    before = pace.rate
    writer.wrote(int(clock.now * 1e9), 1 << 20)
    interval(pace, clock)
    assert pace.rate == pytest.approx(before * SLOWER)
    for _ in range(40):  # until the next time point
        interval(pace, clock)
    writer.wrote(int(clock.now * 1e9), 1 << 20)
    before = pace.rate
    interval(pace, clock)
    assert pace.rate >= before


def test_slow_reads_are_the_last_signal(clock):
    pace = Pace(pressure="/nowhere")
    writer = pace.writer()
    writer.wrote(int(clock.now * 1e9), 1)
    for _ in range(40):
        pace.read(1 << 20, 0.001)
    interval(pace, clock)
    pace.read(1 << 20, 0.001)
    interval(pace, clock)
    before = pace.rate
    assert pace.cause.startswith("slow reads")
    pace.read(1 << 20, 0.1)
    interval(pace, clock)
    assert pace.rate == pytest.approx(before * SLOWER)


def test_one_bucket_holds_all_to_the_rate():
    pace = Pace(1e6)
    waits = [pace(100_000) for _ in range(10)]
    assert sum(1 for wait in waits if wait > 0) == 10
    assert waits[-1] == pytest.approx(1.0, abs=0.05)
    assert [Pace()(1 << 30) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_gentle_off_leaves_only_the_limit(clock, pressure):
    pace = Pace(gentle="off", pressure=str(pressure.path))
    writer = pace.writer()
    busy(pace, clock, writer)
    interval(pace, clock, pressure, 1.0)
    assert pace.rate is None


@pytest.mark.parametrize(
    ("ours", "theirs", "mount", "found"),
    [
        ("/user", "/acq/run", "31 1 0:1 / {0} rw - cgroup2 cgroup2 rw", "acq/run"),
        ("/same", "/same", "31 1 0:1 / {0} rw - cgroup2 cgroup2 rw", None),
        ("/user", "/", "31 1 0:1 / {0} rw - cgroup2 cgroup2 rw", None),
        ("/user", "/box/acq", "31 1 0:1 /box {0} rw shared:1 - cgroup2 none rw", "acq"),
        ("/user", "/else", "31 1 0:1 /box {0} rw - cgroup2 cgroup2 rw", None),
        ("/user", "/acq/run", "31 1 0:1 / {0} rw - cgroup cgroup rw,cpu", None),
    ],
)
def test_where_the_pressure_of_a_writer_stands(tmp_path, ours, theirs, mount, found):
    """Version 2 may be mounted anywhere, and beside version 1."""
    point = tmp_path / "unified"
    for path in ("acq/run", "acq", "same", "else"):
        (point / path).mkdir(parents=True, exist_ok=True)
        (point / path / "io.pressure").touch()
    for who, group in (("self", ours), ("7", theirs)):
        (tmp_path / "proc" / who).mkdir(parents=True)
        (tmp_path / "proc" / who / "cgroup").write_text(f"5:devices:/\n0::{group}\n")
    (tmp_path / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" + mount.format(point) + "\n")
    want = f"{point}/{found}/io.pressure" if found else ""
    assert group_pressure(7, str(tmp_path / "proc")) == want
    assert group_pressure(8, str(tmp_path / "proc")) == ""


@linux
def test_a_real_control_group():
    """A process of a group of its own, where we may make one."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        point = next((line.split()[4] for line in lines if " - cgroup2 " in line), None)
    if point is None or not os.access(point, os.W_OK) or not os.path.exists("/proc/pressure/io"):
        pytest.skip("person: a system where control groups may be made")
    group = f"{point}/scopeferry-test-{os.getpid()}"
    os.mkdir(group)
    try:
        with subprocess.Popen(["sleep", "60"]) as child:
            try:
                with open(f"{group}/cgroup.procs", "w") as file:
                    file.write(str(child.pid))
                path = group_pressure(child.pid)
                assert path == (f"{group}/io.pressure" if os.path.exists(f"{group}/io.pressure") else "")
            finally:
                child.kill()
    finally:
        deadline = time.monotonic() + 10
        while os.path.isdir(group):
            try:
                os.rmdir(group)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
