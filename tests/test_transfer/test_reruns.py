"""When is a file already there? ``transfer.md`` 3.4, row by row, each tried to be broken."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from scopeferry.errors import Interrupted
from scopeferry.kernel.publish import part_name
from scopeferry.kernel.task import Control
from scopeferry.testing.steps import Steps, error, path_of
from scopeferry.testing.trees import flip, random_bytes, random_tree, rewrite, snapshot


def put_back(path, mtime_ns):
    os.utime(path, ns=(mtime_ns, mtime_ns))


def contents(root):
    return {path: entry.content for path, entry in snapshot(root).items()}


@pytest.fixture
def done(ferry):
    """Three files, transferred."""
    for number, name in enumerate("abc"):
        (ferry.src / name).write_bytes(random_bytes(number, 5000))
    (ferry.src / "sub").mkdir()
    (ferry.src / "sub/d").write_bytes(random_bytes(9, 3000))
    assert ferry.run(0).copied == 4
    ferry.same()
    return ferry


# -- nothing to do ---------------------------------------------------------------------------------------------------


def test_a_rerun_with_nothing_to_do_writes_nothing(done):
    before, records = snapshot(done.dst), contents(done.records)
    result = done.run(0)
    assert (result.skipped, result.copied, result.checked, result.adopted, result.bytes) == (4, 0, 0, 0, 0)
    assert snapshot(done.dst) == before
    assert contents(done.records) == records
    assert result.tree_digest.startswith("sha256:")


def test_a_rerun_with_nothing_to_do_opens_no_file(done):
    with Steps() as steps:
        opened = steps.watch("open_source", "create_part", "open_part")
        done.run(0)
    assert opened == []


def test_a_rerun_after_one_file_was_added_copies_that_one(done):
    (done.src / "sub/new").write_bytes(b"new")
    result = done.run(0)
    assert (result.copied, result.skipped) == (1, 4)
    done.same()


def test_verify_all_reads_what_was_already_there(done):
    flip(done.dst / "a", 7)
    os.utime(done.dst / "a", ns=(os.stat(done.src / "a").st_mtime_ns,) * 2)
    result = done.run(0, verify="all")
    assert result.checked + result.repaired == 4
    assert done.entry("a")["action"] == "repaired"
    done.same()


# -- adoption --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tool",
    [
        ["cp", "-a", "SRC/.", "DST"],
        ["rsync", "-a", "SRC/", "DST/"],
        ["rclone", "copy", "--config=", "SRC", "DST"],
        ["cp", "-r", "SRC/.", "DST"],
    ],
    ids=lambda tool: " ".join(tool[:2]),
)
def test_a_copy_by_another_tool_is_adopted_without_a_byte_written(ferry, tool):
    random_tree(ferry.src, files=30, seed=3)
    ferry.dst.mkdir()
    subprocess.run([arg.replace("SRC", str(ferry.src)).replace("DST", str(ferry.dst)) for arg in tool], check=True)
    before = snapshot(ferry.dst)
    with Steps() as steps:
        wrote = steps.watch("create_part", "open_part", "rename_new", "rename", "exchange")
        result = ferry.run(0)
    assert wrote == []
    assert (result.adopted, result.copied) == (30, 0)
    assert {path: entry.inode for path, entry in snapshot(ferry.dst).items()} == {
        path: entry.inode for path, entry in before.items()
    }
    ferry.same()
    assert len(ferry.check_manifest()) == 30
    assert ferry.run(0).skipped == 30


def test_half_a_copy_by_rsync_is_adopted_and_the_rest_sent(ferry):
    random_tree(ferry.src, files=30, seed=4)
    ferry.dst.mkdir()
    subprocess.run(["rsync", "-a", "--exclude=*[13579].tif", f"{ferry.src}/", f"{ferry.dst}/"], check=True)
    result = ferry.run(0)
    assert (result.adopted, result.copied) == (15, 15)
    ferry.same()


def test_adoption_sets_mode_time_and_xattrs(ferry):
    path = ferry.src / "a"
    path.write_bytes(b"data")
    os.setxattr(path, "user.lens", b"63x")
    path.chmod(0o640)
    put_back(path, 1_600_000_000_123_456_789)
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"data")
    assert ferry.run(0).adopted == 1
    ferry.same()
    assert ferry.run(0).skipped == 1


def test_a_twin_of_equal_size_and_time_is_told_apart(ferry, codes):
    (ferry.src / "a").write_bytes(b"right")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"wrong")
    put_back(ferry.dst / "a", os.stat(ferry.src / "a").st_mtime_ns)
    for _ in range(3):  # also the second and third run must not believe it, nor overwrite it
        result = ferry.run(5)
        assert codes(result) == {"SF-501": ["a"]}
        assert (ferry.dst / "a").read_bytes() == b"wrong"
    result = ferry.run(0, on_conflict="replace")
    assert result.replaced == 1
    ferry.same()
    assert ferry.entry("a")["was"].startswith("xxh128:")
    assert ferry.run(0).skipped == 1


# -- damage at the destination ---------------------------------------------------------------------------------------


def test_a_bit_flipped_at_the_destination_is_found_by_a_plain_second_run(done, codes):
    flip(done.dst / "b", 4321)
    damaged = (done.dst / "b").read_bytes()
    result = done.run(0)
    assert codes(result)["SF-902"] == ["b"]
    assert (result.repaired, result.copied, result.skipped) == (1, 0, 3)
    done.same()
    assert done.aside() == [damaged]
    assert done.entry("b")["action"] == "repaired"
    (aside,) = (line for line in done.lines() if line.get("action") == "set_aside")
    assert (done.records / aside["set_aside"]).read_bytes() == damaged
    again = done.run(0)
    assert (again.skipped, again.problems) == (4, [])


def test_a_swapped_pair_is_found_and_healed(done, codes):
    a, b = done.dst / "a", done.dst / "b"
    stamps = [os.stat(done.src / name).st_mtime_ns for name in "ab"]
    os.rename(a, done.dst / "tmp")
    os.rename(b, a)
    os.rename(done.dst / "tmp", b)
    for path, stamp in zip((a, b), stamps, strict=True):
        put_back(path, stamp)
    result = done.run(0)
    assert sorted(codes(result)["SF-902"]) == ["a", "b"]
    assert len(done.aside()) == 2
    done.same()


def test_a_file_whose_change_time_alone_moved_is_read_and_not_written(done):
    os.chmod(done.dst / "a", 0o600)
    inode = os.stat(done.dst / "a").st_ino
    result = done.run(0)
    assert (result.checked, result.copied, result.repaired) == (1, 0, 0)
    assert os.stat(done.dst / "a").st_ino == inode
    done.same()
    assert done.run(0).skipped == 4


def test_damage_of_the_copy_when_the_source_can_not_be_read_is_named(done, codes):
    flip(done.dst / "a")
    with Steps() as steps:
        steps.before("read_into", error(5), times=0, when=lambda fd, *_: path_of(fd) == str(done.src / "a"))
        result = done.run_unchecked(3)
    assert codes(result)["SF-204"] == ["a"]
    assert done.run(0).repaired == 1
    done.same()


def test_a_changed_source_over_a_damaged_copy_keeps_what_was_found(done, codes):
    flip(done.dst / "a", 3)
    damaged = (done.dst / "a").read_bytes()
    (done.src / "a").write_bytes(random_bytes(80, 6000))
    result = done.run(0)
    assert result.replaced == 1
    assert done.aside() == [damaged]
    done.same()


def test_a_changed_source_over_a_copy_whose_change_time_moved_is_plainly_replaced(done, codes):
    os.chmod(done.dst / "a", 0o600)
    (done.src / "a").write_bytes(random_bytes(80, 6000))
    result = done.run(0)
    assert (result.replaced, result.problems, done.aside()) == (1, [], [])
    done.same()


def test_a_file_deleted_at_the_destination_is_sent_again(done):
    (done.dst / "a").unlink()
    shutil.rmtree(done.dst / "sub")
    result = done.run(0)
    assert (result.copied, result.skipped) == (2, 2)
    done.same()


# -- ours, but somebody has changed it -------------------------------------------------------------------------------


def changes():
    return {
        "longer": lambda path: path.write_bytes(b"somebody's longer work" * 1000),
        "shorter": lambda path: path.write_bytes(b"short"),
        "same size, new time": lambda path: (path.write_bytes(bytes(5000)), put_back(path, 10**18)),
        "replaced by rename": lambda path: (
            path.with_name("x").write_bytes(b"other"),
            os.replace(path.with_name("x"), path),
        ),
        "empty": lambda path: path.write_bytes(b""),
    }


@pytest.mark.parametrize("change", changes().values(), ids=changes())
def test_somebodys_change_of_our_copy_is_a_conflict_and_untouched_in_every_rerun(done, codes, change):
    change(done.dst / "a")
    theirs = (done.dst / "a").read_bytes()
    manifest = None
    for number in range(3):
        result = done.run_unchecked(5)
        assert codes(result) == {"SF-501": ["a"]}, number
        assert (done.dst / "a").read_bytes() == theirs, number
        found = done.manifest()
        assert manifest in (None, found)
        manifest = found
    assert "a" in manifest, "the manifest says what each file must be: it still names this one"
    assert done.run(0, on_conflict="replace").replaced == 1
    done.same()
    assert done.run(0).skipped == 4


@pytest.mark.parametrize("change", changes().values(), ids=changes())
def test_keep_both_leaves_theirs_and_puts_ours_beside_it_once(done, codes, change):
    change(done.dst / "a")
    theirs = (done.dst / "a").read_bytes()
    result = done.run(0, on_conflict="keep-both")
    ours = [path for path in done.dst.iterdir() if path.name.startswith("a.scopeferry-")]
    assert len(ours) == 1
    assert ours[0].read_bytes() == (done.src / "a").read_bytes()
    assert (done.dst / "a").read_bytes() == theirs
    assert codes(result)["SF-911"] == ["a"]
    for _ in range(2):
        again = done.run(0, on_conflict="keep-both")
        assert (again.copied, again.bytes) == (0, 0), "nothing is sent again that is there"
        assert [path for path in done.dst.iterdir() if path.name.startswith("a.scopeferry-")] == ours
        assert (done.dst / "a").read_bytes() == theirs


def test_a_file_moved_away_and_back_is_checked_and_right(done):
    os.rename(done.dst / "a", done.dst / "b2")
    os.rename(done.dst / "b2", done.dst / "a")
    result = done.run(0)
    assert (result.checked, result.copied) == (1, 0)


def test_a_conflict_that_somebody_has_undone_is_over(done):
    kept = (done.dst / "a").read_bytes()
    stamp = os.stat(done.src / "a").st_mtime_ns
    (done.dst / "a").write_bytes(b"oops")
    done.run_unchecked(5)
    (done.dst / "a").write_bytes(kept)
    put_back(done.dst / "a", stamp)
    result = done.run(0)
    assert result.checked + result.adopted == 1
    done.same()
    assert done.run(0).skipped == 4


# -- not ours --------------------------------------------------------------------------------------------------------


def test_refuse_copies_the_rest_and_stays_refused(ferry, codes):
    random_tree(ferry.src, files=10, folders=1, seed=5)
    (ferry.src / "x").write_bytes(b"ours")
    ferry.dst.mkdir()
    (ferry.dst / "x").write_bytes(b"theirs, longer")
    for number in range(3):
        result = ferry.run(5)
        assert codes(result) == {"SF-501": ["x"]}
        assert (ferry.dst / "x").read_bytes() == b"theirs, longer"
        assert result.copied == (10 if number == 0 else 0)
        assert "x" not in ferry.check_manifest()


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"four"], ids=["another size", "same size"])
def test_replace_writes_over_it_and_keeps_its_digest(ferry, theirs):
    (ferry.src / "x").write_bytes(b"ours")
    ferry.dst.mkdir()
    (ferry.dst / "x").write_bytes(theirs)
    result = ferry.run(0, on_conflict="replace")
    assert (result.replaced, result.copied) == (1, 0)
    import xxhash

    assert ferry.entry("x")["was"] == f"xxh128:{xxhash.xxh3_128_hexdigest(theirs)}"
    ferry.same()
    assert ferry.run(0, on_conflict="replace").skipped == 1


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"four"], ids=["another size", "same size"])
def test_keep_both_of_a_file_that_was_never_ours(ferry, theirs):
    (ferry.src / "x.tif").write_bytes(b"ours")
    ferry.dst.mkdir()
    (ferry.dst / "x.tif").write_bytes(theirs)
    ferry.run(0, on_conflict="keep-both")
    import xxhash

    beside = ferry.dst / f"x.scopeferry-{xxhash.xxh3_128_hexdigest(b'ours')[:8]}.tif"
    assert beside.read_bytes() == b"ours"
    assert (ferry.dst / "x.tif").read_bytes() == theirs
    assert list(ferry.check_manifest()) == [beside.name]
    inode = beside.stat().st_ino
    again = ferry.run(0, on_conflict="keep-both")
    assert (again.copied, beside.stat().st_ino) == (0, inode)
    assert sorted(os.listdir(ferry.dst)) == sorted([beside.name, "x.tif"])


def test_keep_both_then_a_changed_source_keeps_a_third(ferry):
    (ferry.src / "x.tif").write_bytes(b"ours")
    ferry.dst.mkdir()
    (ferry.dst / "x.tif").write_bytes(b"theirs, longer")
    ferry.run(0, on_conflict="keep-both")
    (ferry.src / "x.tif").write_bytes(b"ours, 2nd version")
    ferry.run(0, on_conflict="keep-both")
    assert sorted(path.read_bytes() for path in ferry.dst.iterdir()) == sorted(
        [b"theirs, longer", b"ours, 2nd version", b"ours"]
    ) or sorted(path.read_bytes() for path in ferry.dst.iterdir()) == sorted([b"theirs, longer", b"ours, 2nd version"])


# -- the source has changed ------------------------------------------------------------------------------------------


def test_a_changed_source_is_replaced_and_the_old_digest_recorded(done):
    old = done.check_manifest()["a"]
    (done.src / "a").write_bytes(random_bytes(77, 6000))
    result = done.run(0)
    assert (result.replaced, result.skipped) == (1, 3)
    assert done.entry("a")["was"] == f"xxh128:{old}"
    done.same()
    assert done.run(0).skipped == 4


def test_a_source_edited_with_its_mtime_put_back_is_replaced(done, codes):
    rewrite(done.src / "a", random_bytes(78, 5000), keep_time=True)
    result = done.run(0)
    assert (result.replaced, result.repaired) == (1, 0)
    done.same()
    assert done.run(0).skipped == 4


def test_a_source_whose_change_time_alone_moved_is_read_and_not_written(done):
    inode = os.stat(done.dst / "a").st_ino
    os.chmod(done.src / "a", 0o640)
    result = done.run(0)
    assert (result.checked, result.copied, result.replaced) == (1, 0, 0)
    assert os.stat(done.dst / "a").st_ino == inode
    done.same()


def test_a_check_of_the_copy_that_was_stopped_still_sees_a_source_changed_since(done):
    os.chmod(done.dst / "a", 0o600)
    control = Control()
    with Steps() as steps:
        steps.after("mount", lambda *_: control.stop(Interrupted("stopped")), nth=3)
        done.run(130, control=control)
    rewrite(done.src / "a", random_bytes(81, 5000), keep_time=True)
    result = done.run(0)
    assert result.replaced + result.repaired == 1
    done.same()


def test_a_source_changed_while_its_copy_is_checked_is_not_believed(done, quick):
    os.chmod(done.dst / "a", 0o600)
    with Steps() as steps:
        steps.before(
            "open_source",
            lambda *_: rewrite(done.src / "a", random_bytes(81, 5000), keep_time=True),
            when=lambda _, name: name == "a",
        )
        done.run(0)
    done.same()


def test_a_stopped_check_under_another_digest_is_not_mixed_up(done):
    os.chmod(done.dst / "a", 0o600)
    control = Control()
    with Steps() as steps:
        steps.after("mount", lambda *_: control.stop(Interrupted("stopped")), nth=3)
        done.run(130, control=control)
    done.run(0, digests=["md5"])
    subprocess.run(["md5sum", "-c", "--strict", "--quiet", done.records / "manifest.md5"], cwd=done.dst, check=True)


def test_a_touched_source_is_not_sent_as_a_conflict(done):
    put_back(done.src / "a", 1_700_000_000_000_000_000)
    done.run(0)
    done.same()
    assert done.run(0).skipped == 4


def test_a_source_that_became_shorter_is_refused_in_every_rerun(done, codes):
    ours = (done.dst / "a").read_bytes()
    (done.src / "a").write_bytes(b"crashed")
    for number in range(3):
        result = done.run(5)
        assert codes(result) == {"SF-503": ["a"]}, number
        assert (done.dst / "a").read_bytes() == ours, number
        assert "a" in done.check_manifest()
    assert done.run(0, on_conflict="replace").replaced == 1
    done.same()


def test_a_source_that_became_empty_is_refused(done, codes):
    (done.src / "a").write_bytes(b"")
    assert codes(done.run(5)) == {"SF-503": ["a"]}
    assert (done.dst / "a").stat().st_size == 5000


def test_both_sides_changed_is_a_conflict_not_a_replacement(done, codes):
    (done.src / "a").write_bytes(random_bytes(79, 7000))
    (done.dst / "a").write_bytes(b"somebody's")
    for _ in range(3):
        assert codes(done.run_unchecked(5)) == {"SF-501": ["a"]}
        assert (done.dst / "a").read_bytes() == b"somebody's"


def test_both_sides_changed_to_the_same_is_adopted(done):
    for root in (done.src, done.dst):
        (root / "a").write_bytes(b"the same new content")
    assert done.run(0).adopted == 1
    done.same()


def test_a_file_gone_at_the_source_is_kept_and_noted(done, codes):
    (done.src / "a").unlink()
    result = done.run(0)
    assert codes(result) == {"SF-903": ["a"]}
    assert (done.dst / "a").exists()
    assert "a" in done.check_manifest()


def test_a_folder_gone_at_the_source_is_kept_and_noted(done, codes):
    shutil.rmtree(done.src / "sub")
    result = done.run(0)
    assert set(codes(result)) == {"SF-903"}
    assert (done.dst / "sub/d").exists()


@pytest.mark.parametrize(("what", "lost"), [("a", "a"), ("sub", "sub/d"), ("link", "link")])
def test_what_is_gone_on_both_sides_is_not_called_kept(done, codes, what, lost):
    (done.src / "link").symlink_to("b")
    done.run(0)
    for side in (done.src, done.dst):
        shutil.rmtree(side / what) if what == "sub" else (side / what).unlink()
    assert codes(done.run_unchecked(3, dry_run=True)) == {"SF-215": [lost]}
    for _ in range(2):
        assert codes(done.run_unchecked(3)) == {"SF-215": [lost]}
    assert done.run_unchecked(0, select=(("exclude", lost),)).failed == 0
    (done.src / lost).parent.mkdir(exist_ok=True)
    (done.src / lost).write_bytes(b"back")
    done.run(0)
    done.same()


# -- kinds that do not fit -------------------------------------------------------------------------------------------


def kinds_in_the_way():
    return {
        "folder where a file should be": ("a", lambda path: (path.mkdir(), (path / "theirs").write_bytes(b"theirs"))),
        "link where a file should be": ("a", lambda path: path.symlink_to("b")),
        "link where a folder should be": ("sub", lambda path: path.symlink_to("/etc")),
        "file where a folder should be": ("sub", lambda path: path.write_bytes(b"theirs")),
        "FIFO where a file should be": ("a", os.mkfifo),
        "file where a link should be": ("link", lambda path: path.write_bytes(b"theirs")),
        "folder where a link should be": ("link", lambda path: path.mkdir()),
        "another link where a link should be": ("link", lambda path: path.symlink_to("theirs")),
    }


@pytest.mark.parametrize("policy", ["refuse", "replace", "keep-both"])
@pytest.mark.parametrize(("name", "plant"), kinds_in_the_way().values(), ids=kinds_in_the_way())
def test_something_of_another_kind_is_never_removed(ferry, codes, name, plant, policy):
    (ferry.src / "a").write_bytes(b"ours")
    (ferry.src / "b").write_bytes(b"the rest")
    (ferry.src / "sub").mkdir()
    (ferry.src / "sub/c").write_bytes(b"below")
    (ferry.src / "link").symlink_to("b")
    ferry.dst.mkdir()
    plant(ferry.dst / name)
    before = os.lstat(ferry.dst / name)
    etc = os.listdir("/etc")
    for _ in range(2):
        if name == "link" and os.path.islink(ferry.dst / name) and policy != "refuse":
            result = ferry.run(0 if policy == "replace" else None, on_conflict=policy)
            if policy == "replace":
                assert os.readlink(ferry.dst / name) == "b"
            else:
                assert os.readlink(ferry.dst / name) == "theirs"
        else:
            result = ferry.run(5, on_conflict=policy)
            assert set(codes(result)) <= {"SF-501", "SF-502", "SF-504"}
            assert os.lstat(ferry.dst / name).st_ino == before.st_ino
        assert (ferry.dst / "b").read_bytes() == b"the rest"
        assert os.listdir("/etc") == etc


def test_a_file_that_became_a_folder_at_the_source_is_a_conflict(done, codes):
    (done.src / "a").unlink()
    (done.src / "a").mkdir()
    (done.src / "a/inside").write_bytes(b"x")
    for _ in range(2):
        done.run(5)
        assert (done.dst / "a").is_file()


def test_a_folder_that_became_a_file_at_the_source_is_a_conflict(done, codes):
    shutil.rmtree(done.src / "sub")
    (done.src / "sub").write_bytes(b"now a file")
    for _ in range(2):
        result = done.run(5)
        assert codes(result)["SF-502"] == ["sub"]
        assert (done.dst / "sub/d").exists()


def test_a_file_that_became_a_link_at_the_source_is_a_conflict(done, codes):
    (done.src / "a").unlink()
    (done.src / "a").symlink_to("b")
    assert codes(done.run(5))["SF-502"] == ["a"]
    assert (done.dst / "a").is_file()


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"digests": ["xxh128", "sha256"]}, {"digests": ["md5"]}, {"keep": frozenset({"times", "mode"})}],
    ids=["two", "md5", "keep"],
)
def test_a_changed_recipe_is_set_right_by_reading_and_without_writing(done, options):
    inodes = {path: entry.inode for path, entry in snapshot(done.dst).items()}
    result = done.run(0, **options)
    assert (result.checked, result.copied, result.bytes) == (4, 0, 0)
    assert {path: entry.inode for path, entry in snapshot(done.dst).items()} == inodes
    for algorithm in options.get("digests", ["xxh128"]):
        lines = (done.records / f"manifest.{algorithm}").read_text().splitlines()
        assert len(lines) == 4
    assert done.run(0, **options).skipped == 4


def test_xattrs_asked_for_later_are_set_right(ferry):
    path = ferry.src / "a"
    path.write_bytes(b"data")
    os.setxattr(path, "user.lens", b"63x")
    ferry.run(0, keep=frozenset({"times", "mode"}))
    assert os.listxattr(ferry.dst / "a") == []
    assert ferry.run(0).checked == 1
    assert os.getxattr(ferry.dst / "a", "user.lens") == b"63x"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha1", "md5"])
def test_further_digests_pass_the_standard_checkers(ferry, algorithm):
    random_tree(ferry.src, files=8, seed=6)
    ferry.run(0, digests=["xxh128", algorithm])
    subprocess.run(
        [f"{algorithm}sum", "-c", "--strict", "--quiet", f"{ferry.records}/manifest.{algorithm}"],
        cwd=ferry.dst,
        check=True,
    )


def test_the_tree_digest_is_the_sum_of_the_manifest(done):
    result = done.run(0)
    told = subprocess.run(
        ["sha256sum", done.records / "manifest.xxh128"], capture_output=True, text=True, check=True
    ).stdout
    assert result.tree_digest == f"sha256:{told.split()[0]}"


def test_equal_trees_have_equal_tree_digests_however_they_came_about(ferry, tmp_path):
    random_tree(ferry.src, files=25, folders=6, seed=8)
    one = ferry.run(0).tree_digest
    other = ferry.run(0, dst=tmp_path / "other", workers=1).tree_digest
    partly = tmp_path / "third"
    ferry.run(0, dst=partly, select=(("include", "**/*[02468].tif"),))
    assert ferry.run(0, dst=partly).tree_digest == one == other


def test_extras_are_counted_and_never_touched(done):
    (done.dst / "extra").write_bytes(b"theirs")
    (done.dst / "sub/extra").write_bytes(b"theirs")
    result = done.run(0)
    assert result.extras == 2
    assert (done.dst / "extra").read_bytes() == (done.dst / "sub/extra").read_bytes() == b"theirs"


def test_verify_none_is_never_called_verified(ferry):
    random_tree(ferry.src, files=10, seed=2)
    result = ferry.run(0, verify="none")
    assert (result.verified, result.read_back) == (0, {})
    assert all(line["read_back"] == "no" for line in ferry.lines() if line.get("kind") == "file")
    ferry.same()


def test_a_sample_says_how_much_was_read_back(ferry):
    random_tree(ferry.src, files=200, size=10, seed=2)
    result = ferry.run(0, verify="sample:20%")
    assert 0 < result.verified < 100
    assert result.copied == 200
    back = [line["path"] for line in ferry.lines() if line.get("read_back") == "storage"]
    assert len(back) == result.verified


def test_dry_run_writes_nothing_and_says_what_would_be_done(done, tmp_path, state):
    (done.src / "new").write_bytes(b"new")
    (done.dst / "b").write_bytes(b"theirs")
    before = snapshot(tmp_path), contents(state)
    told = []
    result = done.run(5, dry_run=True, on_event=told.append)
    assert (snapshot(tmp_path), contents(state)) == before
    assert {event.path: event.data["plan"] for event in told if "plan" in event.data} == {"new": "copy"}
    assert result.state == "planned"


def test_dry_run_of_a_new_destination_makes_nothing(ferry, tmp_path, state):
    (ferry.src / "new").write_bytes(b"new")
    before = snapshot(tmp_path)
    ferry.run(0, dry_run=True)
    assert snapshot(tmp_path) == before
    assert not ferry.dst.exists()
    assert not state.exists()


# -- a tree of so many folders that several processes look at them -----------------------------------------------------


@pytest.fixture
def many(ferry):
    """A hundred folders, transferred, and nothing to do in them."""
    for number in range(100):
        folder = ferry.src / f"position{number:03}" / "below"
        folder.mkdir(parents=True)
        (folder / "a.tif").write_bytes(random_bytes(number, 500))
        (folder.parent / "b.tif").write_bytes(random_bytes(number + 1000, 500))
    assert ferry.run(0).copied == 200
    assert ferry.run(0).skipped == 200
    return ferry


def in_one_folder():
    """How something moves in one of many folders, and what the next run must say of it: (counter, its value)."""
    place = "position057/below"

    def vanish(ferry):
        (ferry.src / place / "a.tif").unlink()

    def new_folder(ferry):
        (ferry.src / place / "new").mkdir()
        (ferry.src / place / "new/c.tif").write_bytes(b"new")

    def times_of_a_folder(ferry):
        put_back(ferry.src / place, 10**18)

    def part(ferry):
        (ferry.dst / place / part_name(f"{place}/a.tif".encode(), "00000000")).write_bytes(b"left")

    return {
        "bit at the destination": (lambda ferry: flip(ferry.dst / place / "a.tif", 9), "repaired", 1),
        "gone at the destination": (lambda ferry: (ferry.dst / place / "a.tif").unlink(), "copied", 1),
        "folder gone there": (lambda ferry: shutil.rmtree(ferry.dst / place), "copied", 1),
        "source edited": (
            lambda ferry: rewrite(ferry.src / place / "a.tif", random_bytes(3, 500), keep_time=True), "replaced", 1,
        ),
        "new file": (lambda ferry: (ferry.src / place / "new").write_bytes(b"new"), "copied", 1),
        "new folder": (new_folder, "copied", 1),
        "gone at the source": (vanish, "skipped", 199),
        "extra": (lambda ferry: (ferry.dst / place / "theirs").write_bytes(b"theirs"), "extras", 1),
        "mode there": (lambda ferry: os.chmod(ferry.dst / place / "a.tif", 0o600), "checked", 1),
        "times of a folder": (times_of_a_folder, "skipped", 200),
        "mode of a folder there": (lambda ferry: os.chmod(ferry.dst / place, 0o711), "skipped", 200),
        "a part was left": (part, "skipped", 200),
        "nothing": (lambda ferry: None, "skipped", 200),
    }  # fmt: skip


@pytest.mark.parametrize(("change", "counter", "count"), in_one_folder().values(), ids=in_one_folder())
def test_what_moves_in_one_of_many_folders_is_found(many, codes, change, counter, count):
    change(many)
    result = many.run(0)
    assert getattr(result, counter) == count
    many.same()
    if "position057/below/a.tif" in codes(result).get("SF-903", []):
        assert (many.dst / "position057/below/a.tif").exists()
    again = many.run(0)
    assert (again.copied, again.checked, again.replaced, again.repaired) == (0, 0, 0, 0)


def test_somebodys_work_in_one_of_many_folders_is_refused_each_time(many, codes):
    path = many.dst / "position057/below/a.tif"
    path.write_bytes(b"somebody's")
    for _ in range(3):
        assert codes(many.run_unchecked(5)) == {"SF-501": ["position057/below/a.tif"]}
        assert path.read_bytes() == b"somebody's"


def test_a_special_file_in_one_of_many_folders_is_said_each_time(many, codes):
    os.mkfifo(many.src / "position057/FIFO")
    for _ in range(2):
        assert codes(many.run(0)) == {"SF-901": ["position057/FIFO"]}


def test_a_link_put_where_one_of_many_folders_was_is_refused(many, tmp_path, codes):
    os.rename(many.dst / "position057", tmp_path / "moved")
    (many.dst / "position057").symlink_to(tmp_path / "moved")
    assert "SF-504" in codes(many.run_unchecked(5))


def test_several_runs_over_many_folders_leave_no_process_behind(many):
    many.run(0)
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True, check=False
    )
    assert [line for line in children.stdout.split() if line.startswith(("python", "scopeferry"))] == []
