"""After a change of digests no manifest names what is not there, and none forgets what is."""

import re
from pathlib import Path


def manifests(dst):
    found = {}
    for path in Path(f"{dst}.scopeferry").glob("manifest.*"):
        found[path.name] = set(re.findall(r"\((.*)\)", path.read_text()))
    return found


def test_manifests_of_an_earlier_digest_stay_true(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 3), tmp_path / "dst"
    program.run("transfer", src, dst, "--digest", "sha256")
    (src / "f0/0.tif").write_bytes(b"another version, longer than the first one" * 99)
    assert program.run("transfer", src, dst)["exit_code"] == 0
    every = {f"f0/{number}.tif" for number in range(3)}
    assert manifests(dst) == {"manifest.xxh128": every, "manifest.sha256": every - {"f0/0.tif"}}
    (src / "f0/1.tif").write_bytes(b"another version, longer than the first one" * 98)
    assert program.run("transfer", src, dst, "--digest", "md5")["exit_code"] == 0
    expected = {"manifest.md5": every, "manifest.xxh128": every - {"f0/1.tif"}, "manifest.sha256": {"f0/2.tif"}}
    assert manifests(dst) == expected
    (src / "f0/2.tif").write_bytes(b"another version, longer than the first one" * 97)
    assert program.run("transfer", src, dst, "--digest", "sha256")["exit_code"] == 0
    expected = {"manifest.sha256": every, "manifest.md5": every - {"f0/2.tif"}, "manifest.xxh128": {"f0/0.tif"}}
    assert manifests(dst) == expected
    assert program.run("verify", dst)["exit_code"] == 0
