"""The manifest: what the standard checkers read, on names with every byte; and back."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopeferry.copying import manifest
from scopeferry.errors import UsageError
from scopeferry.kernel.digest import ALGORITHMS, new
from scopeferry.testing.trees import mutated

EVERY_BYTE = [bytes([byte]) for byte in range(1, 256) if byte != ord("/")]
ODD = [
    b"-",
    b"--help",
    b" lead",
    b"trail ",
    b"a(b) = c",
    b"sub/-",
    b"sub/a",
    b"x" * 255,
    b"\\n",
    b"\\\\",
    b"\n",
    b"a\r",
    b"\\",
]

names = st.binary(min_size=1, max_size=255).map(lambda raw: raw.replace(b"/", b"|").replace(b"\0", b"|"))
paths = st.lists(names.filter(lambda name: name not in {b".", b".."}), min_size=1, max_size=5).map(b"/".join)


@given(paths, st.sampled_from(sorted(ALGORITHMS)), st.binary(min_size=64, max_size=64))
def test_parse_of_format_is_the_path(path, algorithm, digest):
    digest = digest[: ALGORITHMS[algorithm][2]]
    line = manifest.format_line(algorithm, path, digest)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert manifest.parse_line(line) == (algorithm, path, digest)


@given(st.binary(max_size=300))
def test_no_line_breaks_the_parser(line):
    try:
        algorithm, path, digest = manifest.parse_line(line)
    except ValueError:
        return
    assert len(digest) == ALGORITHMS[algorithm][2]
    assert manifest.check_path(path) == path


@given(st.binary(max_size=80))
def test_no_path_leads_out(path):
    try:
        found = manifest.check_path(path)
    except ValueError:
        return
    assert not os.path.isabs(found)
    assert b".." not in found.split(b"/")
    assert os.path.normpath(found) == found


def write(tmp_path, algorithm, wanted) -> dict[bytes, bytes]:
    root = os.fsencode(tmp_path / "copy")
    digests = {}
    for number, path in enumerate(sorted(wanted)):
        full = root + b"/" + path
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(b"%d" % number)
        hasher = new(algorithm)
        hasher.update(b"%d" % number)
        digests[path] = hasher.digest()
    return digests


CHECKERS = {
    "sha256sum": ("sha256", ["sha256sum", "-c", "--strict", "--quiet"]),
    "sha1sum": ("sha1", ["sha1sum", "-c", "--strict", "--quiet"]),
    "sha512sum": ("sha512", ["sha512sum", "-c", "--strict", "--quiet"]),
    "md5sum": ("md5", ["md5sum", "-c", "--strict", "--quiet"]),
    "cksum": ("sha256", ["cksum", "-c", "--strict", "--quiet"]),
    "xxhsum": ("xxh128", ["xxhsum", "-c", "--strict", "--quiet"]),
    "b3sum": ("blake3", ["b3sum", "-c", "--quiet"]),
}


def version(program) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    found = re.search(r"(\d+)\.(\d+)\.?(\d*)", said.stdout + said.stderr)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)


@pytest.mark.parametrize("program", CHECKERS)
def test_the_real_checkers_read_every_name(tmp_path, program):
    algorithm, command = CHECKERS[program]
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}: apt-get install {program}")
    wanted = set(EVERY_BYTE + ODD) - {b"."}
    if program == "b3sum":
        if version(program) < (1, 7):
            pytest.skip("person: b3sum 1.7 knows the tagged form; a parser of the tests reads it meanwhile")
        wanted = {path for path in wanted if path.isascii() and not {*b"\n\r\\"} & {*path}}
    if program == "xxhsum" and version(program) < (0, 8, 2):
        wanted = {path for path in wanted if not {*b"\n\r\\"} & {*path}}  # older ones skip escaped names
    digests = write(tmp_path, algorithm, wanted)
    path = tmp_path / "manifest"
    manifest.write(str(path), algorithm, sorted(digests.items()))
    done = subprocess.run([*command, path], check=False, cwd=tmp_path / "copy", capture_output=True)
    assert (done.returncode, done.stdout) == (0, b""), done.stdout + done.stderr
    (tmp_path / "copy/a").write_bytes(b"damaged")
    done = subprocess.run([*command, path], check=False, cwd=tmp_path / "copy", capture_output=True)
    assert done.returncode != 0


def test_rhash_reads_it(tmp_path):
    if shutil.which("rhash") is None:
        pytest.skip("needs rhash: apt-get install rhash")
    digests = write(tmp_path, "sha256", [b"plain", b"with space", b"sub/a(b)"])
    manifest.write(str(tmp_path / "m.sha256"), "sha256", sorted(digests.items()))
    done = subprocess.run(
        ["rhash", "-c", tmp_path / "m.sha256"], check=False, cwd=tmp_path / "copy", capture_output=True
    )
    assert done.returncode == 0, done.stdout


def test_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "manifest.md5"
    digest, count = manifest.write(str(path), "md5", [(b"a", bytes(16)), (b"b", bytes(16))])
    assert (count, digest) == (2, hashlib.sha256(path.read_bytes()).hexdigest())
    before = path.read_bytes()

    def broken():
        yield b"c", bytes(16)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        manifest.write(str(path), "md5", broken())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["manifest.md5"]


def test_a_planted_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").write_bytes(b"canary")
    (tmp_path / "manifest.md5.part").symlink_to(tmp_path / "outside")
    manifest.write(str(tmp_path / "manifest.md5"), "md5", [(b"a", bytes(16))])
    assert (tmp_path / "outside").read_bytes() == b"canary"
    assert not (tmp_path / "manifest.md5").is_symlink()


def test_reading_names_the_line(tmp_path):
    path = tmp_path / "manifest.md5"
    path.write_bytes(b"MD5 (a) = %s\nMD5 (../b) = %s\n" % (b"0" * 32, b"0" * 32))
    with pytest.raises(UsageError, match="line 2"):
        list(manifest.read(str(path), "md5", ours=True))


def test_what_lies_in_a_record_folder(tmp_path):
    for name in ("manifest.sha256", "manifest.xxh128", "manifest.sha256.part", "manifest.crc", "other"):
        (tmp_path / name).touch()
    assert list(manifest.of_folder(str(tmp_path))) == ["xxh128", "sha256"]
    assert manifest.of_folder(str(tmp_path / "none")) == {}


@pytest.mark.parametrize("times", [2_000, pytest.param(500_000, marks=pytest.mark.slow)])
def test_mutated_manifests_are_read_or_refused_by_line(tmp_path, times):
    path = tmp_path / "manifest.sha256"
    entries = [(b"a", bytes(32)), (b"new\nline", bytes(32)), (b"sub/\xff", bytes(32))]
    manifest.write(str(path), "sha256", entries)
    whole, choice = path.read_bytes(), random.Random(times)
    refused = 0
    for _ in range(times):
        path.write_bytes(mutated(whole, choice))
        try:
            for _, found, digest in manifest.read(str(path), "sha256", ours=True):
                assert len(digest) in {16, 20, 32, 64}
                assert b".." not in found.split(b"/")
        except UsageError as error:
            refused += " line " in str(error)
    assert refused > times // 10
