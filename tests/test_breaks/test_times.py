"""Times that no journal holds: of a clock that was wrong by centuries."""

import os

import pytest

YEAR_2400_NS, YEAR_1500_NS = 13_569_465_600 * 10**9, -14_831_769_600 * 10**9


@pytest.fixture
def src(tmp_path):
    src = tmp_path / "src"
    (src / "late").mkdir(parents=True)
    (src / "late/f").write_bytes(b"f" * 3000)
    (src / "l").symlink_to("nowhere")
    (src / "g").write_bytes(b"g")
    for path in (src / "late/f", src / "late", src / "l"):
        os.utime(path, ns=(YEAR_2400_NS, YEAR_2400_NS), follow_symlinks=False)
    if (src / "late").stat().st_mtime_ns != YEAR_2400_NS:
        pytest.skip("the file system does not hold the year 2400")
    return src


def test_they_are_kept_compared_and_cleaned(program, src, tmp_path):
    dst = tmp_path / "dst"
    assert program.run("transfer", src, dst, "--dry-run")["exit_code"] == 0
    assert program.run("transfer", src, dst)["exit_code"] == 0
    for name in ("late/f", "late", "l"):
        assert os.lstat(dst / name).st_mtime_ns == YEAR_2400_NS
    again = program.run("transfer", src, dst)
    assert (again["exit_code"], again["skipped"], again["checked"]) == (0, 3, 0)
    assert program.run("verify", dst)["exit_code"] == 0
    (dst / "late/f").write_bytes(b"damaged")
    assert program.run("repair", src, dst)["exit_code"] == 0
    assert (dst / "late/f").read_bytes() == b"f" * 3000
    assert program.run("clean", src, "--copy", dst, "--yes")["exit_code"] == 0
    assert not (src / "late").exists()


def test_a_time_before_1677_is_kept_where_it_can_be(program, src, tmp_path):
    os.utime(src / "g", ns=(YEAR_1500_NS, YEAR_1500_NS))
    assert program.run("transfer", src, tmp_path / "dst")["exit_code"] == 0
    assert (tmp_path / "dst/g").stat().st_mtime_ns == (src / "g").stat().st_mtime_ns
