"""Real file systems that do not take every name: exFAT and NTFS by programs, FAT and folded ext4 by the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SIZE = 64 << 20


@dataclass
class Mounted:
    """A file system in an image; `again` takes it off and puts it back, so that what only memory knew is gone."""

    kind: str
    point: Path
    image: Path
    command: list[str]
    loop: str = ""
    up: bool = field(default=False)

    def mount(self) -> None:
        found = subprocess.run(self.command, check=False, capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"person: a machine that can mount {self.kind}: {found.stderr.strip()[-100:]}")
        self.up = True

    def unmount(self) -> None:
        if self.up:
            subprocess.run(["umount", self.point], check=True)
            self.up = False

    def again(self) -> None:
        self.unmount()
        self.mount()


#: kind -> (programs, Debian packages, how it is made, how it is mounted); {} is the image, {point} the place.
KINDS = {
    "exfat": (
        ("mkfs.exfat", "mount.exfat-fuse"), "exfatprogs exfat-fuse",
        "mkfs.exfat {}", "mount.exfat-fuse {loop} {point}",
    ),
    "ntfs": (
        ("mkntfs", "lowntfs-3g"), "ntfs-3g",
        "mkntfs -q -F {}", "lowntfs-3g -o ignore_case,windows_names {} {point}",
    ),
    "vfat": (("mkfs.vfat",), "dosfstools", "mkfs.vfat -F 32 {}", "mount -o loop,utf8 {} {point}"),
    "casefold": (("mkfs.ext4",), "e2fsprogs", "mkfs.ext4 -q -O casefold {}", "mount -o loop {} {point}"),
}  # fmt: skip


@pytest.fixture(params=list(KINDS))
def mounted(request, tmp_path):
    programs, packages, make, mount = KINDS[request.param]
    missing = [name for name in programs if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(programs)}: apt-get install {packages}")
    image, point = tmp_path / "image", tmp_path / "mount"
    point.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(make.format(image).split(), check=True, capture_output=True)
    loop = ""
    if "{loop}" in mount:
        found = subprocess.run(["losetup", "-f", "--show", image], check=False, capture_output=True, text=True)
        loop = found.stdout.strip()
        if not loop:
            pytest.skip("person: a machine with loop devices")
    system = Mounted(request.param, point, image, mount.format(image, loop=loop, point=point).split(), loop)
    try:
        system.mount()
        if request.param == "casefold" and subprocess.run(["chattr", "+F", point], check=False).returncode:
            pytest.skip("person: a kernel that folds names in ext4")
        yield system
    finally:
        system.unmount()
        if loop:
            subprocess.run(["losetup", "-d", loop], check=False)
