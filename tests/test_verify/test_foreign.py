"""`verify --manifest FILE`: what other programs wrote is read back, and is never believed further than it goes."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from scopeferry import verify
from scopeferry.errors import UsageError
from scopeferry.testing.copies import told
from scopeferry.testing.trees import flip, random_tree

NAMES = [
    b"plain",
    b"with space",
    b" lead",
    b"trail ",
    b"-dash",
    b"a(b) = c",
    b"*star",
    b"#hash",
    b"\xff\xfe",
    b"sub/deep",
    "ä".encode(),
]
ESCAPED = [b"new\nline", b"carriage\rreturn", b"back\\slash", b"\\nscape"]

SUMS = {
    "md5sum": ["md5sum"], "sha1sum": ["sha1sum"], "sha256sum": ["sha256sum"], "sha512sum": ["sha512sum"],
    "md5sum --tag": ["md5sum", "--tag"], "sha256sum --tag": ["sha256sum", "--tag"], "sha256sum -b": ["sha256sum", "-b"],
    "cksum": ["cksum", "-a", "sha256"], "b3sum": ["b3sum"], "xxhsum --tag": ["xxhsum", "--tag", "-H2"],
    "rhash --bsd": ["rhash", "--bsd", "--sha256"], "rhash": ["rhash", "--sha1"],
}  # fmt: skip


def tree(root, names) -> None:
    for number, name in enumerate(names):
        path = os.fsencode(root) + b"/" + name
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"%d" % number * 1000)


def listed(root) -> list[bytes]:
    found = [os.path.join(folder, name) for folder, _, names in os.walk(os.fsencode(root)) for name in names]
    return [b"./" + os.path.relpath(path, os.fsencode(root)) for path in found]


@pytest.mark.parametrize("program", SUMS)
def test_sums_of_other_programs(tmp_path, program):
    command = SUMS[program]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}: apt-get install {command[0]}")
    copy = tmp_path / "copy"
    names = NAMES + (ESCAPED if command[0] in {"md5sum", "sha1sum", "sha256sum", "sha512sum", "cksum"} else [])
    if command[0] in {"rhash", "b3sum"}:
        names = [name for name in names if name.isascii() or b"\xc3" in name]
    tree(copy, names)
    done = subprocess.run([*command, *listed(copy)], check=True, cwd=copy, capture_output=True)
    sums = tmp_path / ("B3SUMS" if command[0] == "b3sum" else "SUMS")
    sums.write_bytes(done.stdout)
    result = verify(copy, manifest=sums)
    assert (result.exit_code, result.verified, result.extras) == (0, len(names), 0), result.problems
    assert str(sums) in result.details["verdict"]
    flip(copy / "plain")
    (copy / "with space").unlink()
    (copy / "new").write_bytes(b"x")
    result = verify(copy, manifest=sums)
    assert told(result) == {"SF-401": {"plain"}, "SF-402": {"with space"}}
    assert result.extras == 1
    assert not os.path.exists(f"{copy}.scopeferry")


def test_plain_lines_of_an_algorithm_that_the_length_does_not_tell(tmp_path):
    copy = tmp_path / "copy"
    tree(copy, [b"one", b"two"])
    sums = tmp_path / "sums"
    sums.write_bytes(subprocess.run(["xxhsum", "-H2", "one", "two"], check=True, cwd=copy, capture_output=True).stdout)
    assert verify(copy, manifest=sums, digests=["xxh128"]).exit_code == 0
    assert verify(copy, manifest=sums).exit_code == 4  # taken for MD5
    sums.rename(tmp_path / "all.xxh128")
    assert verify(copy, manifest=tmp_path / "all.xxh128").exit_code == 0


def test_rclone_sum_files(tmp_path):
    if shutil.which("rclone") is None:
        pytest.skip("needs rclone: apt-get install rclone")
    random_tree(tmp_path / "copy", files=8)
    for algorithm in ("md5", "sha1", "sha256"):
        command = ["rclone", "hashsum", algorithm, tmp_path / "copy"]
        done = subprocess.run(command, check=True, capture_output=True)
        sums = tmp_path / f"{algorithm.upper()}SUMS"
        sums.write_bytes(done.stdout)
        assert verify(tmp_path / "copy", manifest=sums).verified == 8


def test_a_bag(tmp_path):
    bagit = pytest.importorskip("bagit", reason="person: pip install bagit, which has no wheel")
    bag = tmp_path / "bag"
    tree(bag, [b"plain", b"new\nline", b"sub/other", b"100%"])
    bagit.make_bag(str(bag), checksums=["sha256", "md5"])
    for name in ("manifest-sha256.txt", "manifest-md5.txt"):
        result = verify(bag, manifest=bag / name)
        assert (result.exit_code, result.verified) == (0, 4), result.problems
    assert verify(bag, manifest=bag / "tagmanifest-sha256.txt").exit_code == 0
    flip(bag / "data/plain")
    assert told(verify(bag, manifest=bag / "manifest-sha256.txt")) == {"SF-401": {"data/plain"}}


def test_a_bag_by_hand(tmp_path):
    """As RFC 8493 has it: two spaces or more, LF, CR and % escaped by %."""
    import hashlib

    tree(tmp_path / "bag/data", [b"new\nline", b"100%", b"a b"])
    lines = []
    for name, written in ((b"new\nline", b"new%0Aline"), (b"100%", b"100%25"), (b"a b", b"a b")):
        content = (tmp_path / "bag/data" / os.fsdecode(name)).read_bytes()
        lines.append(hashlib.sha512(content).hexdigest().encode() + b"   data/" + written + b"\n")
    (tmp_path / "bag/manifest-sha512.txt").write_bytes(b"".join(lines))
    result = verify(tmp_path / "bag", manifest=tmp_path / "bag/manifest-sha512.txt")
    assert (result.exit_code, result.verified) == (0, 3), result.problems


def test_comments_blank_lines_and_windows_line_ends(tmp_path):
    import hashlib

    tree(tmp_path / "copy", [b"a", b"b"])
    hexed = {name: hashlib.sha256((tmp_path / "copy" / name).read_bytes()).hexdigest() for name in "ab"}
    sums = tmp_path / "SHA256SUMS"
    sums.write_bytes(f"# made by hand\r\n\r\n{hexed['a']} *a\r\n; more\n{hexed['b'].upper()}  ./b".encode())
    assert verify(tmp_path / "copy", manifest=sums).verified == 2


BAD = {
    "torn": b"XXH128 (a) = b5e9", "no digest": b"some text", "too long": b"0" * 32 + b"  " + b"x" * 70_000,
    "unknown algorithm": b"CRC32 (a) = 00000000", "odd digits": b"0" * 33 + b"  a",
    "escape": b"\\" + b"0" * 32 + b"  a\\tb",
    "absolute": b"0" * 32 + b"  /etc/passwd", "binary": bytes(range(256)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_lines_that_cannot_be(tmp_path, case):
    tree(tmp_path / "copy", [b"a"])
    sums = tmp_path / "sums"
    sums.write_bytes(b"0" * 32 + b"  a\n" + BAD[case] + b"\n")
    with pytest.raises(UsageError) as caught:
        verify(tmp_path / "copy", manifest=sums)
    assert (caught.value.code, caught.value.exit_code) == ("SF-110", 2)
    assert "line 2" in str(caught.value)


def test_a_manifest_that_is_not_there(tmp_path):
    tree(tmp_path / "copy", [b"a"])
    with pytest.raises(UsageError):
        verify(tmp_path / "copy", manifest=tmp_path / "none")


def test_with_the_source_too(tmp_path):
    tree(tmp_path / "src", [b"a", b"b"])
    shutil.copytree(tmp_path / "src", tmp_path / "copy")
    done = subprocess.run(["sha256sum", "a", "b"], check=True, cwd=tmp_path / "src", capture_output=True)
    (tmp_path / "sums").write_bytes(done.stdout)
    flip(tmp_path / "src/a")
    flip(tmp_path / "copy/b")
    found = told(verify(tmp_path / "copy", tmp_path / "src", manifest=tmp_path / "sums"))
    assert found == {"SF-406": {"a"}, "SF-401": {"b"}}
