"""Real servers on loopback for one test: see `scopeferry.testing.servers`.

``share`` (samba behind ``rclone mount``) and ``sftp`` (sshfs) are a `Share`: ``point`` is the mount, ``data`` the same
folder at the server. ``mounted`` is each of them. `on_tmpfs` runs a shell script where $D may be unmounted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scopeferry.testing.servers import IMPATIENT, Samba, Share, missing, rclone, sshfs
from scopeferry.testing.trees import random_tree


def need(*programs: str) -> None:
    if reason := missing(*programs):
        pytest.skip(reason)


def up(mounted: Share) -> Iterator[Share]:
    """Mounted, until the test is over."""
    try:
        mounted.mount()
    except PermissionError as error:
        if "ermi" not in str(error):  # permission denied, operation not permitted
            raise
        pytest.skip(f"person: a machine that may mount FUSE: {error}")
    yield mounted
    mounted.close()


@pytest.fixture
def samba(tmp_path) -> Iterator[Samba]:
    """A running server with the shares ``data`` and ``other``."""
    need("smbd", "rclone", "fusermount3")
    server = Samba.make(tmp_path, "data", "other")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def share(samba, tmp_path) -> Iterator[Share]:
    """The share ``data``, mounted."""
    mounted = rclone(samba, "data", tmp_path / "mnt", *IMPATIENT)
    yield from up(mounted)


@pytest.fixture
def sftp(tmp_path) -> Iterator[Share]:
    """A folder behind an SFTP server, mounted by sshfs."""
    need("sshfs", "fusermount3", "sftp-server")
    (tmp_path / "data").mkdir()
    mounted = sshfs(tmp_path / "data", tmp_path / "mnt")
    yield from up(mounted)


@pytest.fixture(params=["samba", "sftp"])
def mounted(request) -> Share:
    """Each of them."""
    return request.getfixturevalue({"samba": "share", "sftp": "sftp"}[request.param])


@pytest.fixture
def src(tmp_path) -> Path:
    """A tree of 60 small files in some folders, one of them empty, and an empty folder."""
    random_tree(tmp_path / "src", files=60, folders=3, size=4000, seed=11)
    (tmp_path / "src/empty.tif").touch()
    (tmp_path / "src/nothing").mkdir()
    return tmp_path / "src"


RUN = """
import json, sys
import scopeferry
result = scopeferry.transfer(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]) if len(sys.argv) > 3 else {})
print(json.dumps(result.as_dict()), flush=True)
sys.exit(result.exit_code)
"""


@pytest.fixture
def on_tmpfs(tmp_path) -> Callable[[str], str]:
    """Run a shell script in a mount namespace of its own, with a tmpfs on $D; its standard output.

    ``run SRC DST [OPTIONS]`` transfers, with options as JSON; ``copied N`` waits until N files are there.
    """
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare -rm: a Linux that allows user namespaces")
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.py").write_text(RUN)
    start = f"""
    set -e
    mount -t tmpfs -o size=64m tmpfs "$D"
    run() {{ "{sys.executable}" "{tmp_path / "run.py"}" "$@"; }}
    copied() {{ while [ "$(find "$D/copy" -type f 2>/dev/null | wc -l)" -lt "$1" ]; do sleep 0.01; done; }}
    """

    def run(script: str) -> str:
        env = {**os.environ, "D": str(tmp_path / "disk"), "S": str(tmp_path / "src"), "T": str(tmp_path)}
        command = ["unshare", "-rm", "sh", "-c", start + script]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
