"""Real servers on loopback, and mounts of them: samba behind ``rclone mount``, an SFTP server behind sshfs.

Each server and each mount is a program in a session of its own that can be frozen, killed and started again while a run
goes on. `Share` is a mount and the folder at the server that it shows, which can be read and changed behind its back.
What a mount cannot do is what `specs/live.md` 7 asks for: no events, stale folder times, other inodes after each mount.

Nothing here needs a network, keys or an administrator: FUSE is all. `missing` says what is not installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
#: Errors come within seconds, where rclone would wait for minutes.
IMPATIENT = ("--timeout", "3s", "--contimeout", "1s", "--low-level-retries", "1", "--retries", "1")
PACKAGES = {"smbd": "samba", "fusermount3": "fuse3", "sftp-server": "openssh-sftp-server"}
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


def missing(*programs: str) -> str:
    """The reason for which a test is to be skipped: a program, or FUSE, is not there. Empty if all is."""
    for name in programs:
        if not _found(name):
            return f"needs {name}: apt install {PACKAGES.get(name, name)}"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "person: a machine with FUSE, and the right to mount"
    return ""


def _found(name: str) -> str:
    if name == "sftp-server":
        return next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), "")
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


def wait_until(ready: Callable[[], object], seconds: float = 20) -> None:
    """Return as soon as it is so; TimeoutError if it never is."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("it does not come")
        time.sleep(0.01)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Program:
    """A program in a session of its own: whatever it starts is frozen, killed and ended with it."""

    command: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes to its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.env},
            )

    def has_ended(self) -> bool:
        """Has it ended by itself?"""
        return self.process is not None and self.process.poll() is not None

    def send(self, number: int) -> None:
        """Send a signal to it, and to all that it has started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it; twice is harmless."""
        if self.process is None:
            return
        self.send(number)
        self.send(signal.SIGCONT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self.process.wait()
        self.process = None


@dataclass
class Samba:
    """A samba server; each of its shares shows the folder of its name below `folder`."""

    folder: Path
    port: int
    program: Program

    @classmethod
    def make(cls, folder: Path, *names: str) -> Samba:
        """Folders and configuration of a server that is not started yet."""
        home, port = folder / "samba", free_port()
        for name in ("private", "state", "cache", "lock", "pid", "ncalrpc"):
            (home / name).mkdir(parents=True)
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = SMB_CONF.format(user=user, port=port, home=home)
        for name in names:
            (folder / name).mkdir()
            text += SHARE_CONF.format(name=name, path=folder / name)
        (home / "smb.conf").write_text(text)
        command = [_found("smbd"), "-F", "--no-process-group", "-s", str(home / "smb.conf")]
        return cls(folder, port, Program(command, home / "out"))

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self.program.start()
        wait_until(self.listens)

    def listens(self) -> bool:
        """Can one connect?"""
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it at once, with all connections; twice is harmless."""
        self.program.end()

    def freeze(self) -> None:
        """From now on it takes what is sent, and answers nothing."""
        self.program.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.program.send(signal.SIGCONT)


@dataclass
class Share:
    """A mount at `point` of a server's folder `data`; `mounts` is the program that answers for it."""

    point: Path
    data: Path
    mounts: Program

    def mount(self) -> None:
        """Mount it, and wait until it is. Raises PermissionError with what the program said if it may not."""
        self.point.mkdir(exist_ok=True)
        self.mounts.start()
        wait_until(lambda: os.path.ismount(self.point) or self.mounts.has_ended())
        if not os.path.ismount(self.point):
            said = self.mounts.log.read_text(errors="replace").strip()[-200:]
            self.mounts.end()
            raise PermissionError(said)

    def unmount(self) -> None:
        """Take it away, whoever still uses it: what is left is the bare folder. Twice is harmless."""
        subprocess.run(["fusermount3", "-u", "-z", self.point], check=False, capture_output=True)
        self.mounts.end(signal.SIGTERM)

    def remount(self) -> None:
        """As after a reboot: no cache, and other inodes."""
        self.unmount()
        self.mount()

    def kill(self) -> None:
        """The mount stays, and nobody answers for it (ENOTCONN); twice is harmless."""
        self.mounts.end()

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.kill()
        self.unmount()


def rclone(server: Samba, name: str, point: Path, *options: str) -> Share:
    """One share of a samba server as ``rclone mount`` shows it; not mounted yet."""
    remote = ["--smb-host", "127.0.0.1", "--smb-port", str(server.port), "--smb-user", "guest"]
    caches = ["--vfs-cache-mode", "off", "--dir-cache-time", "1s"]
    command = ["rclone", "mount", f":smb:{name}", str(point), *remote, *caches, *options]
    log = server.folder / f"rclone.{name}.log"
    return Share(point, server.folder / name, Program(command, log, {"RCLONE_CONFIG": os.devnull}))


def sshfs(data: Path, point: Path, *options: str) -> Share:
    """A folder behind an SFTP server, which sshfs starts in place of ssh; not mounted yet."""
    script = point.with_name(f"{point.name}.ssh")
    script.write_text(f"#!/bin/sh\nexec {_found('sftp-server')}\n")
    script.chmod(0o755)
    command = ["sshfs", "-f", "-o", f"ssh_command={script}", *options, f"loopback:{data}", str(point)]
    return Share(point, data, Program(command, point.with_name(f"{point.name}.log")))
