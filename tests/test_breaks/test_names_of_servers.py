"""Names that a server gives back as others, behind a mount that remembers what was made in it."""

import os
import time

import pytest

from scopeferry.testing.servers import IMPATIENT, Samba, missing, rclone

AWKWARD = ("CON", "aux.txt", "new\nline", "bell\x07")


@pytest.fixture
def share(tmp_path):
    """A share of samba, mounted by rclone."""
    if reason := missing("smbd", "rclone", "fusermount3"):
        pytest.skip(reason)
    server = Samba.make(tmp_path, "data", "other")
    server.start()
    mounted = rclone(server, "data", tmp_path / "mnt", *IMPATIENT)
    try:
        mounted.mount()
        yield mounted
    finally:
        mounted.close()
        server.kill()


@pytest.mark.slow
def test_what_a_server_lists_under_another_name_is_refused_or_mapped(program, share, tmp_path):
    src, copy = tmp_path / "src", share.point / "copy"
    src.mkdir()
    for name in (*AWKWARD, "plain", "a:b"):
        (src / name).write_bytes(os.fsencode(name))
    found = program.run("transfer", src, copy)
    assert (found["exit_code"], found["codes"]) == (3, {"SF-207", "SF-904"})
    assert {one["path"] for one in found["problems"] if one["code"] == "SF-207"} == set(AWKWARD)
    assert program.run("transfer", src, copy, "--names", "percent")["exit_code"] == 0
    time.sleep(1.5)  # the mount forgets its listing
    assert len(os.listdir(copy)) == 6
    assert program.run("verify", copy, src)["exit_code"] == 0
    assert program.run("transfer", src, copy, "--names", "percent")["skipped"] == 6
    assert not list(share.data.rglob("*.part"))
