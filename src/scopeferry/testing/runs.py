"""A simulated instrument run: the same bytes, names and times for the same seed, on every system.

Some hundred small images, two larger files, tables, links, an empty folder and odd names, about 46 MB. What a system
cannot make (symbolic links without the right to) is left out, and so it is of the truth that `make_run` returns. Only
the standard library, and nothing of the code under test.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

WELLS = ("A1", "A2", "A3", "B1", "B2", "B3")
POSITIONS = 8
CHANNELS = ("DAPI", "GFP")
TIMES = 4
SIDE = 256  # pixels
LARGE = {"raw_data/mosaic/overview.dat": 12 << 20, "raw_data/movie/movie.dat": 8 << 20}  # bytes
BEGAN_NS = 1_767_225_600 * 10**9  # 2026-01-01T00:00:00Z
FRAME_NS = 250_000_000
NEEDS_BYTES = 48 << 20  # on any disk, whole blocks counted

FOLDER = "folder"


class Seen(NamedTuple):
    """What bears a name: a file's SHA-256, ``-> TARGET`` of a link, or ``folder``; and what tells it from a twin."""

    content: str
    size: int
    mtime_ns: int
    inode: int

    @property
    def is_file(self) -> bool:
        """Neither a folder nor a link?"""
        return len(self.content) == 64


def make_run(root: str | os.PathLike[str], *, seed: int = 0) -> dict[str, str]:
    """Write a run into a new folder; path -> content as in `Seen`, taken from what was to be written.

    Its parent must exist. Raises OSError if it cannot be written.
    """
    root = os.fspath(root)
    os.mkdir(root)
    truth: dict[str, str] = {}
    for number, (path, data) in enumerate(_files(seed)):
        _make_folders(root, path, truth)
        when = BEGAN_NS + number * FRAME_NS
        with open(_below(root, path), "xb") as file:
            file.write(data)
        os.utime(_below(root, path), ns=(when, when))
        truth[path] = hashlib.sha256(data).hexdigest()
    for path in ("output/region_2",):
        _make_folders(root, f"{path}/", truth)
    os.chmod(_below(root, "output/summary.json"), 0o444)
    _make_links(root, truth)
    return truth


def look(root: str | os.PathLike[str]) -> dict[str, Seen]:
    """What is below a folder, by path; every file is read. Nothing if the folder is not there."""
    return dict(_look(os.fspath(root), ""))


def contents(found: Mapping[str, Seen]) -> dict[str, str]:
    """Path -> content."""
    return {path: seen.content for path, seen in found.items()}


def _look(folder: str, head: str) -> Iterator[tuple[str, Seen]]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path, shown = os.path.join(folder, name), head + os.fsencode(name).decode("utf-8", "surrogateescape")
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            content = "-> " + os.readlink(path).replace("\\", "/")
        elif stat.S_ISDIR(facts.st_mode):
            content = FOLDER
        else:
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        yield shown, Seen(content, facts.st_size, facts.st_mtime_ns, facts.st_ino)
        if content == FOLDER:
            yield from _look(path, f"{shown}/")


# -- the parts ---------------------------------------------------------------------------------------------------------


def _files(seed: int) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of every file, in the order in which the instrument writes them."""
    choice = random.Random(seed)
    yield ".acquisition/state.ini", f"[run]\nseed = {seed}\nwells = {' '.join(WELLS)}\n".encode()
    for time in range(TIMES):
        for well in WELLS:
            for position in range(POSITIONS):
                for channel in CHANNELS:
                    yield f"raw_data/{well}/{channel}_p{position}_t{time}.tif", _image(choice.randbytes(SIDE * SIDE))
    for path, size in LARGE.items():
        yield path, choice.randbytes(size)
    for well in WELLS:
        for position in range(POSITIONS):
            yield f"analysis/{well}/cells_p{position}.csv", _table(choice)
    yield "analysis/no cells found.csv", b""
    yield "analysis/[A1] 50% & more; 10 \N{MICRO SIGN}m.txt", b"settings of the segmentation\n"
    yield "analysis/-n", b"a name that looks like an option\n"
    yield f"analysis/{'long_' * 40}name.txt", b"a name of 208 letters\n"
    yield "output/summary.json", b'{"wells": 6, "complete": true}\n'
    yield "output/complete", b""


def _image(pixels: bytes) -> bytes:
    """A grey picture of `SIDE` by `SIDE` bytes as TIFF, without compression."""
    tags = {256: SIDE, 257: SIDE, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: SIDE, 279: len(pixels)}
    words = (struct.pack("<HHII", tag, 4 if tag in {273, 279} else 3, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(words) + bytes(4) + pixels


def _table(choice: random.Random) -> bytes:
    """Cells: number, centre in pixels, area in pixels."""
    rows = (
        f"{cell},{choice.randrange(SIDE)},{choice.randrange(SIDE)},{choice.randrange(80, 900)}\n"
        for cell in range(choice.randrange(20, 200))
    )
    return ("cell,x_px,y_px,area_px\n" + "".join(rows)).encode()


def _make_links(root: str, truth: dict[str, str]) -> None:
    """A link to a folder, a dangling one, and a second name of an image; as far as this system makes them."""
    for path, target, to_folder in (("output/latest", "../analysis", True), ("output/lost", "../not/there.tif", False)):
        try:
            os.symlink(target.replace("/", os.sep), _below(root, path), target_is_directory=to_folder)
            truth[path] = f"-> {target}"
        except OSError:
            pass
    first, second = "raw_data/B2/GFP_p3_t0.tif", "output/best.tif"
    try:
        os.link(_below(root, first), _below(root, second))
        truth[second] = truth[first]
    except OSError:
        pass


def _make_folders(root: str, path: str, truth: dict[str, str]) -> None:
    parts = path.split("/")[:-1]
    for folder in ("/".join(parts[: number + 1]) for number in range(len(parts))):
        if folder not in truth:
            os.mkdir(_below(root, folder))
            truth[folder] = FOLDER


def _below(root: str, path: str) -> str:
    """A path below the root, its bytes UTF-8 whatever the locale says."""
    return os.path.join(root, *os.fsdecode(path.encode()).split("/"))
