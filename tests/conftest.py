"""What holds for every test: its own state folder, no file left open, and skips that say what would enable them.

A skip's reason is "needs NAME: how to get it". With ``SCOPEFERRY_REQUIRE=all`` (CI) a skip is an error, but for what
only a person can give: reasons that start with ``person:`` (another system) or ``samples:`` (the sample files).
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

ONLY_A_PERSON = ("person:", "samples:")
SHOWN_REASONS = 12

settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def _refused(reason: str) -> bool:
    return os.environ.get("SCOPEFERRY_REQUIRE") == "all" and not reason.startswith(ONLY_A_PERSON)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").strip()


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and _refused(_reason(report)):
        report.longrepr = f"{report.nodeid}: skipped although SCOPEFERRY_REQUIRE=all: {_reason(report)}"
        report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _refuse(report)
    return report


def pytest_terminal_summary(terminalreporter):
    """List what was skipped, grouped by what would enable it."""
    counted = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if not counted:
        return
    terminalreporter.section(f"{counted.total()} skipped, and what would enable them", sep="-")
    for reason, count in counted.most_common(SHOWN_REASONS):
        terminalreporter.line(f"{count:5}  {' '.join(reason.split())[:150]}")
    if len(counted) > SHOWN_REASONS:
        terminalreporter.line(f"       and {len(counted) - SHOWN_REASONS} more reasons: pytest -rs shows them")


def _open_files() -> dict[int, str]:
    """What this process holds open, by descriptor; without what the interpreter itself keeps for its lifetime."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:  # the descriptor of the listing itself
            continue
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    forkserver = sys.modules.get("multiprocessing.forkserver")
    kept = [
        getattr(getattr(tracker, "_resource_tracker", None), "_fd", None),
        getattr(getattr(forkserver, "_forkserver", None), "_forkserver_alive_fd", None),
    ]
    return {fd: target for fd, target in found.items() if fd not in kept and target != "/dev/urandom"}


@pytest.fixture(autouse=True)
def _no_file_left_open():
    """Fail a test that leaves a file, socket or pipe open. What ends by itself gets a second."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _open_files()
    yield
    deadline = time.monotonic() + 1
    while left := {fd: target for fd, target in _open_files().items() if before.get(fd) != target}:
        if time.monotonic() > deadline:
            pytest.fail(f"left open: {', '.join(sorted(left.values()))}", pytrace=False)
        gc.collect()
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def state(tmp_path_factory, monkeypatch) -> Path:
    """An empty home for this test; the folder where runs register is below it. The user's own is never touched."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(home))
    for kind, below in (("STATE", ".local/state"), ("CONFIG", ".config"), ("CACHE", ".cache")):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(home / below))
    return home / ".local/state"


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real microscopy files that SCOPEFERRY_SAMPLES names."""
    folder = Path(os.environ.get("SCOPEFERRY_SAMPLES", ""))
    if not os.environ.get("SCOPEFERRY_SAMPLES") or not folder.is_dir():
        pytest.skip("samples: set SCOPEFERRY_SAMPLES to the folder of sample files")
    return folder
