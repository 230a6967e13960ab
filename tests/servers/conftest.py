"""Real servers on loopback, and mounts of them: samba behind ``rclone mount``, an SFTP server behind sshfs, a tmpfs.

Each server and mount can be stopped, killed and brought back while a run goes on. Everything lies in the folder of one
test and ends with it. How they are started is `specs/live.md` 7: smbd in a session of its own, for its SIGTERM goes to
the whole group.

``share`` and ``sftp`` are a `Share`: ``share.point`` is the mount, ``share.data`` the same folder at the server, read
and changed behind the mount's back. `on_tmpfs` runs a shell script where $D is a file system that may be unmounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scopeferry.testing.trees import random_tree

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
SMB_CONF = """\
[global]
server role = standalone server
map to guest = Bad User
guest account = {user}
interfaces = 127.0.0.1/8
bind interfaces only = yes
smb ports = {port}
disable netbios = yes
disable spoolss = yes
load printers = no
store dos attributes = no
private dir = {home}/private
state directory = {home}/state
cache directory = {home}/cache
lock directory = {home}/lock
pid directory = {home}/pid
ncalrpc dir = {home}/ncalrpc
log file = {home}/log
"""
SHARE_CONF = """
[{name}]
path = {path}
guest ok = yes
read only = no
"""
#: Errors come within seconds, where rclone would wait for minutes.
IMPATIENT = ("--timeout", "2s", "--contimeout", "1s", "--low-level-retries", "1", "--retries", "1")


def wait_until(ready: Callable[[], object], seconds: float = 20) -> None:
    """Return as soon as it is so; fail the test if it never is."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Program:
    """A program in a session of its own: all that it starts is stopped, killed and ended with it."""

    command: list[str]
    log: Path
    process: subprocess.Popen | None = None
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.env},
            )

    def send(self, number: int) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it; twice is harmless."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.send(signal.SIGKILL)
                self.process.wait()
            self.process = None


@dataclass
class Samba:
    """A samba server with one share for each name: ``data`` lies in ``folder/data``."""

    folder: Path
    port: int
    program: Program

    @classmethod
    def make(cls, folder: Path, *names: str) -> Samba:
        home, port = folder / "samba", free_port()
        for name in ("private", "state", "cache", "lock", "pid", "ncalrpc"):
            (home / name).mkdir(parents=True)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = SMB_CONF.format(user=user, port=port, home=home)
        for name in names:
            (folder / name).mkdir()
            text += SHARE_CONF.format(name=name, path=folder / name)
        (home / "smb.conf").write_text(text)
        smbd = shutil.which("smbd") or "/usr/sbin/smbd"
        command = [smbd, "-F", "--no-process-group", "-s", str(home / "smb.conf")]
        return cls(folder, port, Program(command, home / "out"))

    def start(self) -> None:
        self.program.start()
        wait_until(self.listens)

    def listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.program.end()

    def freeze(self) -> None:
        """It takes everything and answers nothing."""
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.program.send(signal.SIGCONT)


@dataclass
class Share:
    """A mount, and the folder of its server that it shows."""

    point: Path
    data: Path
    mounts: Program
    server: Samba | None = None

    def mount(self) -> None:
        self.point.mkdir(exist_ok=True)
        self.mounts.start()
        wait_until(lambda: os.path.ismount(self.point))

    def unmount(self) -> None:
        """Take it away, whoever still uses it; what is left is the bare folder. Twice is harmless."""
        subprocess.run(["fusermount3", "-u", "-z", self.point], check=False, capture_output=True)
        self.mounts.end(signal.SIGTERM)

    def remount(self) -> None:
        """As after a reboot: no cache, other inodes."""
        self.unmount()
        self.mount()

    def kill(self) -> None:
        """The mount stays, and nobody answers for it: ENOTCONN."""
        self.mounts.end()

    def close(self) -> None:
        self.kill()
        self.unmount()
        if self.server is not None:
            self.server.kill()


def need(*programs: str) -> None:
    """Skip without these programs, or without FUSE."""
    packages = {"smbd": "samba", "fusermount3": "fuse3"}
    for name in programs:
        if shutil.which(name) is None and not os.access(f"/usr/sbin/{name}", os.X_OK):
            pytest.skip(f"needs {name}: apt install {packages.get(name, name)}")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse: a kernel with FUSE, and the right to mount")


def rclone(server: Samba, name: str, point: Path, *options: str) -> Share:
    """A mount of one share, as in `specs/live.md` 7; not mounted yet."""
    remote = ["--smb-host", "127.0.0.1", "--smb-port", str(server.port), "--smb-user", "guest"]
    caches = ["--vfs-cache-mode", "off", "--dir-cache-time", "1s"]
    command = ["rclone", "mount", f":smb:{name}", str(point), *remote, *caches, *options]
    env = {"RCLONE_CONFIG": os.devnull}
    return Share(point, server.folder / name, Program(command, server.folder / f"rclone.{name}", env=env), server)


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
    mounted.mount()
    yield mounted
    mounted.close()


@pytest.fixture
def sftp(tmp_path) -> Iterator[Share]:
    """A folder behind an SFTP server, which needs no network and no keys here, mounted by sshfs."""
    need("sshfs", "fusermount3")
    server = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), None)
    if server is None:
        pytest.skip("needs sftp-server: apt install openssh-sftp-server")
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\nexec {server}\n")
    script.chmod(0o755)
    (tmp_path / "data").mkdir()
    point = tmp_path / "mnt"
    command = ["sshfs", "-f", "-o", f"ssh_command={script}", f"loopback:{tmp_path / 'data'}", str(point)]
    mounted = Share(point, tmp_path / "data", Program(command, tmp_path / "sshfs.log"))
    mounted.mount()
    yield mounted
    mounted.close()


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
