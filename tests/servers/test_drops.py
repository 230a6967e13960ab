"""A server or a mount that goes away in the middle of a run: it comes back, or does not, or another one comes."""

from __future__ import annotations

import errno
import os
import threading

import pytest

import scopeferry
from scopeferry.copying import heartbeat
from scopeferry.kernel import publish
from scopeferry.testing.servers import IMPATIENT, rclone
from scopeferry.testing.steps import Steps, error
from scopeferry.testing.trees import differences, parts, random_tree

NTH = 30  # of the 61 files


def slow(*values):
    """The same for patient people."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def codes(result) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in result.problems:
        found.setdefault(problem.code, []).append(problem.path)
    return found


def unlike(src, copy) -> list[str]:
    return [line for line in differences(src, copy, times=False) if "mode is" not in line]


def run(src, dst, happens, *, call="create_part", nth=NTH, **options):
    """A run in which something happens before the nth call; it comes back with a result, whatever that is."""
    with Steps() as steps:
        steps.before(call, lambda *_: happens(), nth=nth, when=lambda *given: call != "create_part" or is_part(given))
        return scopeferry.transfer(src, dst, **options)


def is_part(given) -> bool:
    return publish.part_hash(given[1]) is not None


def nothing_wrong_stands_at(copy, src) -> int:
    """Each final name is a whole file; how many there are."""
    names = [path.relative_to(copy) for path in copy.rglob("*.tif")]
    assert all((copy / name).read_bytes() == (src / name).read_bytes() for name in names)
    return len(names)


def finishes(src, share, name="copy"):
    """The same command ends the work, and sends nothing that is there."""
    there = nothing_wrong_stands_at(share.data / name, src) if (share.data / name).is_dir() else 0
    result = scopeferry.transfer(src, share.point / name)
    assert result.exit_code == 0, [str(one) for one in result.problems]
    assert result.copied <= 61 - there + 3
    assert unlike(src, share.data / name) == []
    assert parts(share.data) == []
    assert scopeferry.verify(share.point / name).exit_code == 0
    assert scopeferry.transfer(src, share.point / name).copied == 0


def later(what, seconds: float = 1.0) -> None:
    threading.Timer(seconds, what).start()


# -- the server of a destination -------------------------------------------------------------------------------------


def test_the_server_is_killed_and_stays_away(share, samba, src):
    result = run(src, share.point / "copy", samba.kill, patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert set(codes(result)) >= {"SF-323"}
    assert result.copied < 61
    samba.start()
    finishes(src, share)


def test_the_server_is_killed_and_comes_back(share, samba, src):
    def restart():
        samba.kill()
        later(samba.start)

    result = run(src, share.point / "copy", restart, patience_s=30, workers=2)
    assert (result.exit_code, result.copied) == (0, 61), codes(result)
    assert unlike(src, share.data / "copy") == []
    finishes(src, share)


def test_the_server_answers_nothing_for_a_while(share, samba, src):
    def pause():
        samba.freeze()
        later(samba.thaw, 1.5)

    result = run(src, share.point / "copy", pause, patience_s=30, workers=2)
    assert (result.exit_code, result.copied) == (0, 61), codes(result)
    finishes(src, share)


@pytest.mark.slow
def test_the_server_answers_nothing_any_more(share, samba, src):
    result = run(src, share.point / "copy", samba.freeze, patience_s=2, workers=2)
    assert result.exit_code == 75, codes(result)
    samba.thaw()
    share.remount()
    finishes(src, share)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call", ["write_at", "read_into", "rename_new", "set_attributes", "make_folder", "flush_folder"]
)
@pytest.mark.parametrize("back", [False, True])
def test_the_server_is_killed_at_any_step(share, samba, src, call, back):
    def kill():
        samba.kill()
        if back:
            later(samba.start)

    result = run(src, share.point / "copy", kill, call=call, nth=3, patience_s=20 if back else 1.5, workers=2)
    assert result.exit_code == (0 if back else 75), codes(result)
    if not back:
        samba.start()
    share.remount()
    finishes(src, share)


# -- the mount of a destination --------------------------------------------------------------------------------------


def test_nobody_answers_for_the_mount_any_more(mounted, src):
    """ENOTCONN."""
    result = run(src, mounted.point / "copy", mounted.kill, patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert "SF-323" in codes(result)
    mounted.remount()
    finishes(src, mounted)


def test_unmounted_and_nothing_is_written_into_the_bare_mount_point(mounted, src):
    result = run(src, mounted.point / "copy", mounted.unmount, patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert os.listdir(mounted.point) == []
    again = scopeferry.transfer(src, mounted.point / "copy", patience_s=1)
    assert again.exit_code == 75, codes(again)
    assert os.listdir(mounted.point) == []
    mounted.mount()
    finishes(src, mounted)


def test_mounted_again_within_patience(mounted, src):
    def away():
        mounted.unmount()
        later(mounted.mount, 0.5)

    result = run(src, mounted.point / "copy", away, patience_s=30, workers=2)
    assert (result.exit_code, result.copied) == (0, 61), codes(result)
    finishes(src, mounted)


def test_another_share_is_mounted_at_the_same_place(share, samba, src, tmp_path):
    """With a copy of the same name, and its records, as on the second of two backup disks."""
    other = rclone(samba, "other", share.point, *IMPATIENT)
    random_tree(tmp_path / "elsewhere", files=5)
    scopeferry.transfer(tmp_path / "elsewhere", samba.folder / "other/copy")
    before = {path: path.read_bytes() for path in (samba.folder / "other").rglob("*") if path.is_file()}

    def swap():
        share.unmount()
        other.mount()

    try:
        result = run(src, share.point / "copy", swap, patience_s=1, workers=2)
        assert result.exit_code in {1, 75}, codes(result)
        assert set(codes(result)) & {"SF-303", "SF-323"}
        assert {path: path.read_bytes() for path in before} == before
        assert {path for path in (samba.folder / "other").rglob("*") if path.is_file()} == set(before)
    finally:
        other.close()
    share.mount()
    finishes(src, share)


def test_the_same_share_with_what_another_run_left_is_not_ours(share, samba, src):
    """The server shows another disk under the same name: only our lock tells."""

    def swap():
        share.unmount()
        (samba.folder / "data").rename(samba.folder / "first")
        (samba.folder / "data/copy").mkdir(parents=True)
        (samba.folder / "data/copy.scopeferry").mkdir()
        share.mount()

    result = run(src, share.point / "copy", swap, patience_s=1, workers=2)
    assert result.exit_code in {1, 75}, codes(result)
    assert [path for path in (samba.folder / "data").rglob("*") if path.is_file()] == []


# -- the source ------------------------------------------------------------------------------------------------------


@pytest.fixture
def from_share(share):
    random_tree(share.data / "run", files=60, folders=3, size=4000, seed=12)
    return share


def test_the_server_of_a_source_is_killed_and_stays_away(from_share, samba, tmp_path):
    result = run(from_share.point / "run", tmp_path / "copy", samba.kill, patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert set(codes(result)) <= {"SF-322"}
    samba.start()
    assert scopeferry.transfer(from_share.point / "run", tmp_path / "copy").exit_code == 0
    assert unlike(from_share.data / "run", tmp_path / "copy") == []


def test_the_server_of_a_source_is_killed_and_comes_back(from_share, samba, tmp_path):
    def restart():
        samba.kill()
        later(samba.start)

    result = run(from_share.point / "run", tmp_path / "copy", restart, patience_s=30, workers=2)
    assert (result.exit_code, result.copied) == (0, 60), codes(result)
    assert unlike(from_share.data / "run", tmp_path / "copy") == []


@pytest.mark.slow
def test_the_server_of_a_source_is_gone_before_its_folders_are_listed(from_share, samba, tmp_path):
    def restart():
        samba.kill()
        later(samba.start)

    result = run(from_share.point / "run", tmp_path / "copy", restart, call="scan", nth=1, patience_s=30)
    assert (result.exit_code, result.copied) == (0, 60), codes(result)


@pytest.mark.parametrize("how", ["unmount", "kill"])
def test_the_mount_of_a_source_goes_away(from_share, tmp_path, how):
    result = run(from_share.point / "run", tmp_path / "copy", getattr(from_share, how), patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert "SF-322" in codes(result)
    from_share.remount()
    assert scopeferry.transfer(from_share.point / "run", tmp_path / "copy").exit_code == 0
    assert unlike(from_share.data / "run", tmp_path / "copy") == []


def test_a_source_that_is_unmounted_is_not_an_empty_source(from_share, tmp_path):
    """The whole mount is the source: its bare mount point is an empty folder."""
    result = run(from_share.point, tmp_path / "copy", from_share.unmount, patience_s=1, workers=2)
    assert result.exit_code == 75, codes(result)
    assert "SF-202" not in codes(result)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, *slow(errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN)])
@pytest.mark.parametrize("call", ["read_into", *slow("open_source")])
def test_an_error_that_passes_is_tried_again(from_share, tmp_path, code, call):
    with Steps() as steps:
        steps.before(call, error(code), nth=10)
        result = scopeferry.transfer(from_share.point / "run", tmp_path / "copy", workers=2)
    assert (result.exit_code, result.copied) == (0, 60), codes(result)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, *slow(errno.ENOTCONN)])
@pytest.mark.parametrize("call", ["rename_new", *slow("create_part", "write_at", "flush")])
def test_an_error_that_passes_at_the_destination(share, src, code, call):
    with Steps() as steps:
        steps.before(call, error(code), nth=40)
        result = scopeferry.transfer(src, share.point / "copy", workers=2)
    assert (result.exit_code, result.copied + result.adopted) == (0, 61), codes(result)
    finishes(src, share)


def test_an_error_that_passes_before_the_first_file(share, src, monkeypatch):
    """While the lock is taken, and while it is asked which names the server takes."""
    real, tried = heartbeat.os.open, []

    def fails_once(path, *more, **how):
        if str(path).endswith("lock.held"):
            tried.append(path)
            if len(tried) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, *more, **how)

    monkeypatch.setattr(heartbeat.os, "open", fails_once)
    with Steps() as steps:
        steps.before("make_folder", error(errno.EIO), when=lambda _, name, *__: name.startswith(".sf-"))
        result = scopeferry.transfer(src, share.point / "copy", workers=2)
    assert (result.exit_code, result.copied) == (0, 61), codes(result)
    assert len(tried) == 2


@pytest.mark.slow
def test_a_file_that_the_server_cannot_read_is_named_and_the_others_are_copied(from_share, tmp_path):
    with Steps() as steps:
        steps.before(
            "read_into",
            error(errno.EIO),
            times=0,
            when=lambda fd, *_: os.readlink(f"/proc/self/fd/{fd}").endswith("7.tif"),
        )
        result = scopeferry.transfer(from_share.point / "run", tmp_path / "copy")
    named = [str(path.relative_to(from_share.data / "run")) for path in from_share.data.rglob("*7.tif")]
    assert result.exit_code == 3, codes(result)
    assert sorted(codes(result)["SF-204"]) == sorted(named)
    assert result.copied == 60 - len(named)


# -- a local disk that is taken away ---------------------------------------------------------------------------------


def test_a_disk_that_is_unmounted_in_mid_run(src, on_tmpfs):
    out = on_tmpfs("""
        ( copied 20; umount -l "$D" ) &
        run "$S" "$D/copy" '{"patience_s": 0.5, "limit": 100000, "workers": 1}' && exit 9 || test $? = 75
        wait
        test -z "$(ls -A "$D")"
    """)
    assert '"SF-323"' in out


def test_another_disk_is_mounted_at_the_same_place(src, on_tmpfs):
    out = on_tmpfs("""
        ( copied 20; umount -l "$D"; mount -t tmpfs tmpfs "$D"; mkdir "$D/copy" "$D/copy.scopeferry" ) &
        code=0; run "$S" "$D/copy" '{"patience_s": 0.5, "limit": 100000, "workers": 1}' || code=$?
        wait
        test $code = 75 || test $code = 1
        test -z "$(find "$D" -type f)"
    """)
    assert '"SF-303"' in out or '"SF-323"' in out


def test_the_same_disk_comes_back_within_patience(src, on_tmpfs):
    out = on_tmpfs("""
        mkdir "$T/kept"; mount --bind "$D" "$T/kept"
        ( copied 20; umount -l "$D"; sleep 1; mount --move "$T/kept" "$D" ) &
        run "$S" "$D/copy" '{"patience_s": 30, "limit": 100000, "workers": 1}'
        wait
        rsync -aHAXn --checksum --itemize-changes "$S/" "$D/copy/"
    """)
    assert out.strip().endswith("}"), "rsync has nothing to say"


def test_a_source_disk_that_is_unmounted_in_mid_run(src, on_tmpfs, tmp_path):
    out = on_tmpfs("""
        cp -a "$S" "$D/src"
        ( while [ "$(find "$T/copy" -type f 2>/dev/null | wc -l)" -lt 20 ]; do sleep 0.01; done; umount -l "$D" ) &
        run "$D/src" "$T/copy" '{"patience_s": 0.5, "limit": 100000, "workers": 1}' && exit 9 || test $? = 75
        wait
    """)
    assert '"SF-322"' in out
