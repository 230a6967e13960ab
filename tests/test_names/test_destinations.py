"""Transfers to real file systems that do not take every name, or no fine times."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from scopeferry import repair, transfer, verify
from scopeferry.copying import names
from scopeferry.kernel import publish
from scopeferry.kernel.publish import Disk

ODD_NS = 1_704_067_203_700_000_123  # an odd second


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)).casefold(): path.read_text() for path in root.rglob("*") if path.is_file()}


def failed(result) -> dict[str, str]:
    return {problem.path: problem.code for problem in result.problems if problem.code < "SF-900"}


def generations(dst: Path) -> list[str]:
    return sorted(path.name for path in dst.with_name(dst.name + ".scopeferry").glob("*.jsonl"))


def lines(dst: Path) -> dict[str, dict]:
    found = {}
    for path in sorted(dst.with_name(dst.name + ".scopeferry").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "path" in entry:
                found[entry["path"]] = entry
    return found


def everything(root: Path) -> list[str]:
    return sorted(os.fsencode(path) for path in root.rglob("*"))


def test_what_is_found_out_and_nothing_is_left_behind(mounted):
    point = mounted.point
    (point / "dst").mkdir()
    records = point / "dst.scopeferry"
    records.mkdir()
    disk, before = publish.disk(str(point / "dst")), everything(point)
    for inside in (str(records), "/nowhere"):
        os.utime(inside if os.path.isdir(inside) else point / "dst", (1_700_000_000, 1_700_000_000))
        rules = names.rules_of(str(point / "dst"), disk, inside)
        assert rules.case
        assert rules.key("ABC") == rules.key("abc")
        assert not rules.any_name
    assert rules.forms == (mounted.kind == "casefold")
    assert rules.mtime_step_ns == {"exfat": 10**9, "ntfs": 100, "vfat": 2 * 10**9, "casefold": 1}[mounted.kind]
    assert everything(point) == before
    assert {(point / name).stat().st_mtime for name in ("dst", "dst.scopeferry")} == {1_700_000_000.0}


def test_what_a_killed_run_left_of_the_question_goes(mounted):
    left = mounted.point / names._PLACE
    left.mkdir()
    (left / "casea").write_text("")
    names.rules_of(str(mounted.point), publish.disk(str(mounted.point)), "/nowhere")
    assert not left.exists()


def test_the_second_twin_is_never_written_over_the_first(mounted, tmp_path):
    files = {"IMG.tif": "upper", "img.tif": "lower", "Same": "equal", "same": "equal", "ok/x": "x", "OK/y": "y"}
    files |= {"dir": "a", "Dir/z": "z"}
    src, dst = tree(tmp_path / "src", files), mounted.point / "dst"
    wanted = {"img.tif": "SF-208", "same": "SF-208", "ok": "SF-208", "dir": "SF-208"}
    for _ in range(2):
        result = transfer(src, dst)
        assert result.exit_code == 3
        assert failed(result) == wanted
        assert contents(dst) == {"img.tif": "upper", "same": "equal", "ok/y": "y", "dir/z": "z"}
        assert result.extras == 0
    assert (result.copied, result.skipped) == (0, 4)
    assert generations(dst) == ["0001.jsonl"], "a rerun that changes nothing says nothing"


def test_a_twin_that_comes_later_is_the_one_that_is_refused(mounted, tmp_path):
    src, dst = tree(tmp_path / "src", {"scan": "first", "sub/b": "b"}), mounted.point / "dst"
    assert transfer(src, dst).exit_code == 0
    tree(src, {"SCAN": "first", "SUB/c": "c"})
    result = transfer(src, dst)
    assert failed(result) == {"SCAN": "SF-208", "SUB": "SF-208"}
    (src / "scan").unlink()
    assert failed(transfer(src, dst)) == {"SCAN": "SF-208", "SUB": "SF-208"}, "the copy of the first still stands there"
    result = transfer(src, dst, names="percent")
    assert result.exit_code == 0, result.problems
    assert contents(dst) == {"scan": "first", "%53%43%41%4e": "first", "sub/b": "b", "%53%55%42/c": "c"}


def test_percent_keeps_everything_and_says_how(mounted, tmp_path):
    files = {"IMG.tif": "upper", "img.tif": "lower", "Data/x": "1", "data/x": "2", "50%41": "p"}
    files |= {"ok/a": "a", "ok/A": "b"}
    src, dst = tree(tmp_path / "src", files), mounted.point / "dst"
    result = transfer(src, dst, names="percent")
    assert result.exit_code == 0, result.problems
    assert contents(dst) == {
        "img.tif": "upper", "%69mg.tif": "lower", "data/x": "1", "%64ata/x": "2", "50%2541": "p", "ok/a": "b",
        "ok/%61": "a",
    }  # fmt: skip
    assert "SF-908" in result.codes
    found = lines(dst)
    assert {path: found[path].get("stored") for path in ("img.tif", "IMG.tif", "data/x", "data", "50%41")} == {
        "img.tif": "%69mg.tif", "IMG.tif": None, "data/x": "%64ata/x", "data": "%64ata", "50%41": "50%2541",
    }  # fmt: skip
    mounted.again()
    subprocess.run(["xxhsum", "-c", "--quiet", "../dst.scopeferry/manifest.xxh128"], cwd=dst, check=True)
    result = transfer(src, dst, names="percent")
    assert (result.exit_code, result.copied, result.skipped, result.extras) == (0, 0, 7, 0)
    assert generations(dst) == ["0001.jsonl"]


def test_a_mapped_name_is_kept_when_its_twin_or_the_journal_is_gone(mounted, tmp_path, state):
    files = {"A": "1", "a": "2", "F/x": "3", "f/x": "4"}
    src, dst = tree(tmp_path / "src", files), mounted.point / "dst"
    assert transfer(src, dst, names="percent").exit_code == 0
    stored = contents(dst)
    (src / "A").unlink()
    (src / "F/x").unlink()
    (src / "F").rmdir()
    for path in (None, *(state / "scopeferry/journals").iterdir()):
        if path is not None:
            path.unlink()
        result = transfer(src, dst, names="percent")
        assert result.exit_code == 0, result.problems
        assert result.copied == 0
        assert contents(dst) == stored


def test_names_that_it_cannot_hold_fail_alone_and_before_their_first_byte(mounted, tmp_path):
    if mounted.kind == "casefold":
        files = {"fine": "1", os.fsdecode(b"bad\xff"): "2"}
    else:
        files = {"fine": "1", "what?": "2", "a:b/c": "3", "line\nfeed": "4", os.fsdecode(b"bad\xff"): "5"}
    src, dst = tree(tmp_path / "src", files), mounted.point / "dst"
    result = transfer(src, dst)
    wrong = {name.partition("/")[0] for name in files if name != "fine"}
    if mounted.kind == "casefold":
        wrong = set()  # only a strict one refuses bytes that are no text
    assert failed(result) == dict.fromkeys(wrong, "SF-207")
    assert result.exit_code == (3 if wrong else 0)
    assert result.bytes == len(files) - len(wrong)
    assert transfer(src, dst, names="percent").exit_code == 0
    assert len(contents(dst)) == len(files)


def test_times_that_it_cannot_hold_are_said_and_do_not_copy_again(mounted, tmp_path):
    src, dst = tree(tmp_path / "src", {"f/a": "a", "b": "b"}), mounted.point / "dst"
    for path in (src / "f/a", src / "b", src / "f", src):
        os.utime(path, ns=(ODD_NS, ODD_NS))
    result = transfer(src, dst)
    assert result.exit_code == 0
    steps = {"exfat": "mtime below 1 s", "ntfs": "mtime below 100 ns", "vfat": "mtime below 2 s", "casefold": None}
    lost = steps[mounted.kind]
    assert [kind for kind in result.lost if "mtime" in kind or kind == "times"] == ([lost] if lost else [])
    assert "times" not in result.lost
    if lost:
        assert lost in lines(dst)["b"]["lost"]
        assert lost in lines(dst)["f/a"]["lost"]
    for _ in range(2):
        mounted.again()
        result = transfer(src, dst)
        assert (result.exit_code, result.copied, result.checked, result.adopted, result.skipped) == (0, 0, 0, 0, 2)
        assert generations(dst) == ["0001.jsonl"]
    assert transfer(src, mounted.point / "strict", strict=True).exit_code == (3 if lost else 0)


def test_hard_links_find_their_mapped_names(mounted, tmp_path):
    src, dst = tree(tmp_path / "src", {"One": "1", "a/x": "2"}), mounted.point / "dst"
    for name in ("one", "a/X", "a/what?"):
        os.link(src / "One", src / name)
    result = transfer(src, dst, names="percent")
    assert result.exit_code == 0, result.problems
    assert sorted(contents(dst).values()) == ["1", "1", "1", "1", "2"]
    inodes = {path.stat().st_ino for path in dst.rglob("*") if path.is_file()}
    plain = mounted.kind in {"exfat", "vfat"}
    assert len(inodes) == (5 if plain else 2)
    assert result.lost.get("hardlinks", 0) == (4 if plain else 0)
    result = transfer(src, dst, names="percent")
    assert (result.exit_code, result.copied, result.skipped) == (0, 0, 5), result.problems
    assert generations(dst) == ["0001.jsonl"], "it has been said"


def test_links_to_mapped_names_are_adopted_under_them(mounted, tmp_path):
    src, dst = tree(tmp_path / "src", {"A": "1", "a": "2"}), mounted.point / "dst"
    (src / "L").symlink_to("A")
    (src / "l").symlink_to("nowhere")
    result = transfer(src, dst, names="percent")
    assert result.exit_code == 0, result.problems
    if mounted.kind in {"exfat", "vfat"}:
        assert result.lost["links"] == 2, "these have no links, and say so"
        assert len(list(dst.iterdir())) == 2
        assert verify(dst, src).exit_code == 0
        return
    assert os.readlink(dst / "%6C") == "nowhere"
    result = transfer(src, dst, names="percent")
    assert (result.exit_code, result.copied, result.skipped) == (0, 0, 4)


def test_a_rehearsal_asks_nothing_and_assumes(mounted, tmp_path):
    src = tree(tmp_path / "src", {"A": "1", "b": "2"})
    before = everything(mounted.point)
    transfer(src, mounted.point / "dst", dry_run=True)
    assert everything(mounted.point) == before


def test_a_large_folder_finds_its_twins_without_a_list(mounted, tmp_path, monkeypatch):
    from scopeferry.copying import plan

    monkeypatch.setattr(plan, "CHUNK", 8)
    files = {f"{n:03}": str(n) for n in range(40)}
    files |= {"Twin": "T", "twin": "t", "TWIN": "TT", "Sub/x": "x", "sub/y": "y"}
    src, dst = tree(tmp_path / "src", files), mounted.point / "dst"
    result = transfer(src, dst)
    assert failed(result) == {"Twin": "SF-208", "twin": "SF-208", "sub": "SF-208"}
    result = transfer(src, dst, names="percent")
    assert result.exit_code == 0, result.problems
    assert len(contents(dst)) == 45
    result = transfer(src, dst, names="percent")
    assert (result.exit_code, result.copied, result.skipped, result.extras) == (0, 0, 45, 0)


# -- what no mount is needed for --------------------------------------------------------------------------------------


def test_fat_takes_no_file_of_4_gib(tmp_path, monkeypatch):
    real = publish.disk
    (tmp_path / "card").mkdir()
    dst = tmp_path / "card/dst"
    monkeypatch.setattr(publish, "disk", lambda path: Disk("vfat", "/", "") if "/card" in path else real(path))
    src = tree(tmp_path / "src", {"small": "s"})
    for name, size in (("large", 4 << 30), ("largest", (4 << 30) - 1)):
        with open(src / name, "wb") as file:
            file.truncate(size)
    result = transfer(src, dst, verify="none", select=(("exclude", "largest"),))
    assert (result.exit_code, failed(result)) == (3, {"large": "SF-209"})
    assert sorted(path.name for path in dst.iterdir()) == ["small"]
    result = transfer(src, tmp_path / "card/dst2", dry_run=True)
    assert failed(result) == {"large": "SF-209"}
    assert sorted(os.listdir(tmp_path / "card")) == ["dst", "dst.scopeferry"]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "f2fs", "tmpfs"])
def test_those_that_take_any_name_are_not_asked(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(names, "_asked_in", None)
    assert names.rules_of(str(tmp_path), Disk(kind, "/", ""), "/nowhere") == names.Rules()


def test_a_folder_that_folds_names_is_asked_whatever_its_type(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(names, "_asked_in", lambda _folder: asked.append(1) or names.Rules(case=True))
    monkeypatch.setattr(publish.system, "folds_names", lambda _folder: True)
    assert names.rules_of(str(tmp_path), Disk("ext4", "/", ""), "/nowhere").case
    assert asked


def test_where_nothing_can_be_made_the_type_decides(tmp_path, monkeypatch):
    def full(_folder, _name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.system, "make_folder", full)
    rules = names.rules_of(str(tmp_path), Disk("vfat", "/", ""), "/nowhere")
    assert rules.case
    assert rules.mtime_step_ns == 2 * 10**9
    assert names.rules_of(str(tmp_path), Disk("overlay", "/", ""), "/nowhere").any_name


def test_a_plain_file_system_of_unknown_type_is_asked_and_found_plain(tmp_path):
    assert names.rules_of(str(tmp_path), Disk("overlay", "/", ""), "/nowhere").any_name
    assert list(tmp_path.iterdir()) == []


def test_a_name_too_long_for_a_folder_that_is_yet_to_be_made(tmp_path, monkeypatch):
    """As on a file system with short names: what is asked of the root is true of the folder."""
    real = publish.system.lstat

    def lstat(folder, name):
        if len(os.fsencode(name)) > 143:
            raise OSError(36, "File name too long")
        return real(folder, name)

    src, dst = tree(tmp_path / "src", {"new/" + "x" * 200: "1", "new/y": "2"}), tmp_path / "dst"
    dst.mkdir()
    here = os.stat(src / "new").st_ino

    def only_there(folder, name):
        return real(folder, name) if os.fstat(folder).st_ino == here else lstat(folder, name)

    monkeypatch.setattr(publish.system, "lstat", only_there)
    result = transfer(src, dst)
    assert failed(result) == {"new/" + "x" * 200: "SF-207"}
    assert result.bytes == 1


def test_what_it_could_not_hold_is_no_difference_later(mounted, tmp_path):
    src = tree(tmp_path / "src", {"A/x": "1", "a/x": "2", "B": "3", "b": "4", "100%41": "5"})
    for path in (*src.rglob("*"), src):
        os.utime(path, ns=(ODD_NS, ODD_NS))
    dst = mounted.point / "dst"
    assert transfer(src, dst, names="percent").exit_code == 0
    mounted.again()
    assert verify(dst).exit_code == 0
    assert verify(dst, src).exit_code == 0
    (dst / "%62").write_text("!")
    assert failed(verify(dst)) == {"%62": "SF-401"}
    assert repair(src, dst).exit_code == 0
    assert (dst / "%62").read_text() == "4"
    result = transfer(src, dst, names="percent")
    assert (result.exit_code, result.copied, result.skipped + result.checked) == (0, 0, 5), result.problems
