"""`live` from and to a share: no events, stale folder times, other inodes after each mount, and drops in mid-run."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import scopeferry
from scopeferry.testing.trees import differences, parts, random_bytes

CHUNKS = 24


def write(root: Path, *, count: int = CHUNKS, pause_s: float = 0.02, between=None) -> None:
    """A growing store, written as rename-writers do: a new folder now and then, and the marker last."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        folder = root / f"c/{number // 10}"
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{number}.{'0' * 32}.partial"
        part.write_bytes(random_bytes(number, 5000))
        os.rename(part, folder / str(number))
        time.sleep(pause_s)
        if between is not None and number == count // 2:
            between()
    (root / "complete").touch()


def unlike(src, copy) -> list[str]:
    return [line for line in differences(src, copy, times=False) if "mode is" not in line]


def follow(src, dst, written: Path, **how):
    """Follow while it is written; the result."""
    options = how.pop("options", {})
    writer = threading.Thread(target=write, args=(written,), kwargs=how)
    writer.start()
    try:
        return scopeferry.live(src, dst, **options)
    finally:
        writer.join()


def told(result) -> list[str]:
    return [f"{one.code} {one.path} {one.message}" for one in result.problems]


def test_a_source_on_a_mount_that_grows_at_the_server(share, tmp_path):
    result = follow(share.point / "run", tmp_path / "copy", share.data / "run")
    assert result.exit_code == 0, told(result)
    assert unlike(share.data / "run", tmp_path / "copy") == []


@pytest.mark.parametrize("mounted", [pytest.param("samba", marks=pytest.mark.slow), "sftp"], indirect=True)
def test_a_destination_on_a_mount(mounted, tmp_path):
    result = follow(tmp_path / "run", mounted.point / "copy", tmp_path / "run")
    assert result.exit_code == 0, told(result)
    assert unlike(tmp_path / "run", mounted.data / "copy") == []
    assert parts(mounted.data) == []


def drop(share, samba, how: str) -> None:
    """Take it away, and bring it back while the writer goes on."""
    away, back = (samba.kill, samba.start) if how == "server" else (share.unmount, share.mount)
    away()
    threading.Timer(1.0, back).start()
    time.sleep(1.5)


@contextmanager
def mounted_again(share):
    """Somebody mounts it again where the program behind the mount has crashed, as rclone may when a server returns."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            if share.mounts.has_ended():
                share.remount()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["server", "mount"])
def test_a_source_whose_share_drops_and_comes_back(share, samba, tmp_path, how):
    src, copy = share.data / "run", tmp_path / "copy"
    result = follow(share.point / "run", copy, src, between=lambda: drop(share, samba, how), options={"patience_s": 30})
    assert result.exit_code == 0, told(result)
    assert unlike(src, copy) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["server", "mount"])
def test_a_destination_whose_share_drops_and_comes_back(share, samba, tmp_path, how):
    src, copy = tmp_path / "run", share.data / "copy"
    with mounted_again(share) if how == "server" else nullcontext():
        result = follow(
            src, share.point / "copy", src, between=lambda: drop(share, samba, how), options={"patience_s": 60}
        )
    assert result.exit_code == 0, told(result)
    assert unlike(src, copy) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["server", "mount"])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_share_that_drops_and_stays_away(share, samba, tmp_path, how, side):
    src, written = (share.point / "run", share.data / "run") if side == "source" else (tmp_path / "run",) * 2
    dst = tmp_path / "copy" if side == "source" else share.point / "copy"
    away = samba.kill if how == "server" else share.unmount
    result = follow(src, dst, written, between=away, options={"patience_s": 2})
    assert result.exit_code == 75, told(result)
    assert {one.code for one in result.problems} - {"SF-904"} == {"SF-322" if side == "source" else "SF-323"}
    assert how == "server" or os.listdir(share.point) == []
