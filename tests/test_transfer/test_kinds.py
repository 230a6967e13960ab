"""What is kept: every row of ``transfer.md`` 3.2, against oracles that know nothing of us."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import sys

import pytest

from scopeferry.testing import kinds
from scopeferry.testing.steps import Steps
from scopeferry.testing.trees import differences, flip, random_bytes, snapshot, walk

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="person: the rows are made by calls of Linux")
KEEP = frozenset({"times", "mode", "links", "hardlinks", "holes", "xattrs"})


def rsync_says(src, dst) -> list[str]:
    """What rsync would change, the skipped specials left out."""
    done = subprocess.run(
        [
            "rsync",
            "-aHAXSn",
            "--no-D",
            "--no-specials",
            "--checksum",
            "--itemize-changes",
            "--delete",
            f"{src}/",
            f"{dst}/",
        ],
        capture_output=True,
        check=True,
    )
    return [
        line for line in done.stdout.decode(errors="replace").splitlines() if "skipping non-regular file" not in line
    ]


@pytest.fixture
def every(ferry, tmp_path):
    """All rows; the names of what must be skipped are in `skipped`."""
    shutil.rmtree(ferry.src)
    ferry.skipped = kinds.build(ferry.src, tmp_path / "outside", devices=os.geteuid() == 0)
    yield ferry
    kinds.unlock(tmp_path)


def test_rsync_finds_nothing_to_change(every, codes):
    result = every.run(0)
    assert rsync_says(every.src, every.dst) == []
    assert set(codes(result)) == {"SF-901"}
    assert set(codes(result)["SF-901"]) == {f"special/{name}" for name in every.skipped}
    assert result.lost == {}


def test_everything_is_as_it_was_by_our_own_walk(every):
    every.run(0)
    every.same()
    root, copy = os.stat(every.src), os.stat(every.dst)
    assert (root.st_mode, root.st_mtime_ns) == (copy.st_mode, copy.st_mtime_ns)
    assert os.getxattr(every.dst, "user.root") == b"of the root folder"


def test_it_is_what_cp_makes(every, tmp_path):
    every.run(0)
    twin = tmp_path / "twin"
    subprocess.run(["cp", "-a", every.src, twin], check=True)
    shutil.rmtree(twin / "special")
    shutil.rmtree(every.dst / "special")
    assert differences(twin, every.dst) == []
    assert differences(every.dst, twin) == []


def test_getfattr_agrees(every):
    every.run(0)
    told = [
        subprocess.run(
            ["getfattr", "-d", "-m", "^user", "-e", "hex", "-R", "xattrs", "modes", "."],
            cwd=root,
            capture_output=True,
            check=False,
        ).stdout
        for root in (every.src, every.dst)
    ]
    assert told[0] == told[1] != b""


def test_a_rerun_over_every_kind_reads_and_writes_nothing(every):
    every.run(0)
    before = snapshot(every.dst)
    with Steps() as steps:
        touched = steps.watch(
            "open_source", "create_part", "open_part", "hard_link", "make_link", "set_attributes", "set_xattr"
        )
        result = every.run(0)
    assert touched == []
    assert (result.copied, result.checked, result.adopted) == (0, 0, 0)
    assert snapshot(every.dst) == before


def test_special_files_are_never_opened(every):
    """A FIFO blocks whoever opens it, and a device may act."""
    log = every.dst.with_name("trace")
    command = [os.path.join(os.path.dirname(sys.executable), "scopeferry"), "transfer", str(every.src), str(every.dst)]
    subprocess.run(
        ["strace", "-f", "-qq", "-o", log, "-e", "trace=open,openat", *command],
        check=True,
        capture_output=True,
        timeout=120,
    )
    opened = [
        line
        for line in log.read_text(errors="replace").splitlines()
        if any(f'"{name}"' in line for name in kinds.SPECIAL)
    ]
    assert opened == []


# -- sparse files ----------------------------------------------------------------------------------------------------


def test_holes_are_kept_and_take_no_room(every):
    every.run(0)
    for path in (every.src / "holes").iterdir():
        here, there = os.stat(path).st_blocks * 512, os.stat(every.dst / "holes" / path.name).st_blocks * 512
        assert there <= here * 1.05 + 65536, path.name
        assert path.read_bytes() == (every.dst / "holes" / path.name).read_bytes()


def test_without_holes_the_bytes_are_the_same(every):
    every.run(0, keep=KEEP - {"holes"})
    every.same()
    assert os.stat(every.dst / "holes/at the start").st_blocks * 512 >= 8 << 20


def test_a_hole_that_is_filled_during_the_copy_is_noticed(ferry, quick):
    path = ferry.src / "sparse"
    with open(path, "wb") as file:
        file.truncate(8 << 20)
        file.write(b"start")

    def fill(*_):
        with open(path, "r+b") as file:
            file.seek(5 << 20)
            file.write(b"filled")

    with Steps() as steps:
        steps.before("set_size", fill)
        ferry.run(0)
    ferry.same()


def test_a_sparse_file_over_its_damaged_copy(ferry):
    with open(ferry.src / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.write(b"start")
    ferry.run(0)
    flip(ferry.dst / "sparse", 4 << 20)
    assert ferry.run(0).repaired == 1
    ferry.same()


# -- links -----------------------------------------------------------------------------------------------------------


def test_the_roots_may_be_links(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    (tmp_path / "to src").symlink_to(ferry.src)
    ferry.dst.mkdir()
    (tmp_path / "to dst").symlink_to(ferry.dst)
    ferry.run(0, src=tmp_path / "to src", dst=tmp_path / "to dst")
    ferry.same()
    assert (tmp_path / "to dst").is_symlink()


def test_one_inode_in_is_one_inode_out_read_and_written_once(every):
    with Steps() as steps:
        opened = steps.watch("open_source")
        made = steps.watch("create_part")
        every.run(0)
    inodes = {os.stat(every.dst / "hard links" / name).st_ino for name in ("one", "two", "sub/three")}
    assert len(inodes) == 1
    assert sum(name in {"one", "two", "three"} for _, _, name in opened) == 1
    assert os.stat(every.dst / "hard links/also outside").st_nlink == 1
    assert len(made) == len({found.inode for found in snapshot(every.src).values() if found.kind == "file"})


def test_more_groups_than_are_read_at_a_time(ferry, monkeypatch):
    monkeypatch.setattr("scopeferry.kernel.journal.PAGE", 2)
    for number in range(5):
        (ferry.src / f"{number}").write_bytes(b"%d" % number)
        for other in "ab":
            (ferry.src / f"{number}{other}").hardlink_to(ferry.src / f"{number}")
    assert ferry.run(0).copied == 15
    ferry.same()
    with Steps() as steps:
        opened = steps.watch("open_source")
        assert ferry.run(0).skipped == 15
    assert opened == []


def test_each_hard_link_has_its_line_in_the_manifest(every):
    every.run(0)
    manifest = every.manifest()
    assert manifest["hard links/one"] == manifest["hard links/two"] == manifest["hard links/sub/three"]


def test_a_link_added_to_a_copied_group_is_linked_and_not_sent(ferry):
    (ferry.src / "a").write_bytes(random_bytes(1, 5000))
    ferry.run(0)
    os.link(ferry.src / "a", ferry.src / "b")
    result = ferry.run(0)
    assert result.bytes == 0
    assert os.stat(ferry.dst / "a").st_ino == os.stat(ferry.dst / "b").st_ino
    again = ferry.run(0)
    assert (again.copied, again.checked, again.skipped) == (0, 0, 2)


def test_a_group_whose_content_changes_stays_a_group(ferry):
    (ferry.src / "a").write_bytes(b"one")
    for name in "bc":
        os.link(ferry.src / "a", ferry.src / name)
    ferry.run(0)
    (ferry.src / "a").write_bytes(b"another version")
    ferry.run(0)
    ferry.same()
    assert len({os.stat(ferry.dst / name).st_ino for name in "abc"}) == 1
    assert ferry.run(0).skipped == 3


def test_a_group_that_is_split_at_the_source_is_split_in_the_copy(ferry):
    (ferry.src / "a").write_bytes(b"one")
    os.link(ferry.src / "a", ferry.src / "b")
    ferry.run(0)
    (ferry.src / "new").write_bytes(b"other content")
    os.replace(ferry.src / "new", ferry.src / "b")
    ferry.run(0)
    ferry.same()
    assert os.stat(ferry.dst / "a").st_ino != os.stat(ferry.dst / "b").st_ino
    ferry.run(0)
    assert ferry.run(0).checked == 0


def test_a_flipped_bit_in_a_group_is_healed_in_all_its_names(ferry):
    (ferry.src / "a").write_bytes(random_bytes(1, 5000))
    for name in "bc":
        os.link(ferry.src / "a", ferry.src / name)
    ferry.run(0)
    flip(ferry.dst / "b", 77)
    ferry.run(0)
    ferry.same()


@pytest.mark.parametrize("theirs", [b"theirs", b"another size"], ids=["same size", "another size"])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_group_of_which_one_name_is_taken_by_other_content(ferry, codes, name, theirs):
    """No other name may become a link to what is not ours."""
    (ferry.src / "a").write_bytes(b"source")
    for other in "bc":
        os.link(ferry.src / "a", ferry.src / other)
    ferry.dst.mkdir()
    (ferry.dst / name).write_bytes(theirs)
    for _ in range(2):
        result = ferry.run(5)
        assert codes(result)["SF-501"] == [name]
        for other in {"a", "b", "c"} - {name}:
            assert not (ferry.dst / other).exists() or (ferry.dst / other).read_bytes() == b"source"
        assert (ferry.dst / name).read_bytes() == theirs
    assert {other for other in "abc" if (ferry.dst / other).exists()} == {"a", "b", "c"}
    assert ferry.run(0, on_conflict="replace").exit_code == 0
    ferry.same()


def test_a_group_whose_source_cannot_be_read_is_named_in_all_names(ferry, codes):
    from scopeferry.testing.steps import error, path_of

    (ferry.src / "a").write_bytes(b"source")
    os.link(ferry.src / "a", ferry.src / "b")
    with Steps() as steps:
        steps.before("read_into", error(5), when=lambda fd, *_: path_of(fd).startswith(str(ferry.src)), times=0)
        result = ferry.run(3)
    assert sorted(path for paths in codes(result).values() for path in paths) == ["a", "b"]
    ferry.run(0)
    ferry.same()


def test_hard_links_that_are_not_kept_are_files(ferry):
    (ferry.src / "a").write_bytes(b"one")
    os.link(ferry.src / "a", ferry.src / "b")
    ferry.run(0, keep=KEEP - {"hardlinks"})
    assert os.stat(ferry.dst / "a").st_ino != os.stat(ferry.dst / "b").st_ino
    ferry.same()


def test_links_that_are_not_kept_are_said(ferry, codes):
    (ferry.src / "a").symlink_to("b")
    result = ferry.run(0, keep=KEEP - {"links"})
    assert result.lost == {"links": 1}
    assert "SF-904" in codes(result)


# -- modes, owners, folders ------------------------------------------------------------------------------------------


def test_setuid_is_kept_only_with_owner(ferry):
    (ferry.src / "a").write_bytes(b"a")
    os.chmod(ferry.src / "a", 0o4755)
    ferry.run(0)
    assert stat.S_IMODE(os.stat(ferry.dst / "a").st_mode) == 0o755
    ferry.run(0, keep=KEEP | {"owner"})
    assert stat.S_IMODE(os.stat(ferry.dst / "a").st_mode) == 0o4755


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only it gives files away")
def test_owner_is_kept_if_asked_for(ferry):
    (ferry.src / "a").write_bytes(b"a")
    (ferry.src / "folder").mkdir()
    (ferry.src / "link").symlink_to("a")
    for name in ("a", "folder", "link"):
        os.chown(ferry.src / name, 1234, 5678, follow_symlinks=False)
    ferry.run(0, keep=KEEP | {"owner"})
    for name in ("a", "folder", "link"):
        assert os.lstat(ferry.dst / name).st_uid == 1234, name


def test_acls_are_kept_if_asked_for_and_only_then(ferry):
    (ferry.src / "a").write_bytes(b"a")
    if shutil.which("setfacl") is None:
        pytest.skip("needs setfacl: apt install acl")
    subprocess.run(["setfacl", "-m", "u:1234:r", ferry.src / "a"], check=True)
    ferry.run(0)
    assert "system.posix_acl_access" not in os.listxattr(ferry.dst / "a")
    ferry.run(0, keep=KEEP | {"acl"})
    assert rsync_says(ferry.src, ferry.dst) == []


def test_the_time_of_a_folder_is_set_again_when_a_file_in_it_changes_later(ferry):
    (ferry.src / "folder/below").mkdir(parents=True)
    (ferry.src / "folder/below/a").write_bytes(b"a")
    os.utime(ferry.src / "folder/below", ns=(kinds.OLD_NS, kinds.OLD_NS))
    os.utime(ferry.src / "folder", ns=(kinds.OLD_NS, kinds.OLD_NS))
    ferry.run(0)
    (ferry.src / "folder/below/a").write_bytes(b"later version")
    ferry.run(0)
    ferry.same()
    assert os.stat(ferry.dst / "folder/below").st_mtime_ns == kinds.OLD_NS


def test_the_mode_of_a_folder_alone_is_set_right_by_a_rerun(ferry):
    (ferry.src / "folder").mkdir()
    ferry.run(0)
    os.chmod(ferry.dst / "folder", 0o711)
    ferry.run(0)
    ferry.same()
    os.chmod(ferry.src / "folder", 0o750)
    ferry.run(0)
    ferry.same()


def test_the_access_time_of_the_source_is_left_alone(ferry):
    path = ferry.src / "a"
    path.write_bytes(b"a")
    os.utime(path, ns=(1_000_000_000_000_000_000, os.stat(path).st_mtime_ns))
    ferry.run(0)
    assert os.stat(path).st_atime_ns == 1_000_000_000_000_000_000


def without_powers(ferry, *options, script=None):
    """The real command as the owner without the power to pass over permissions; (exit code, envelope)."""
    import json

    code = [
        os.path.join(os.path.dirname(sys.executable), "scopeferry"),
        "transfer",
        "--json",
        *options,
        ferry.src,
        ferry.dst,
    ]
    drop = "-dac_override,-dac_read_search"
    done = subprocess.run(
        ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", *map(str, code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


powerless = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv: util-linux"
)


@powerless
def test_read_only_folders_and_files_without_the_powers_of_root(ferry, tmp_path):
    kinds.modes(str(ferry.src))
    try:
        code, result = without_powers(ferry)
        assert (code, result["lost"]) == (0, {}), result["problems"]
        ferry.same()
        code, result = without_powers(ferry)
        assert (code, result["copied"], result["checked"]) == (0, 0, 0)
        os.chmod(ferry.src / "folder 555", 0o755)
        (ferry.src / "folder 555/new").write_bytes(b"a new file in a read-only folder")
        os.link(ferry.src / "folder 555/file", ferry.src / "folder 555/also file")
        os.chmod(ferry.src / "folder 555", 0o555)
        code, result = without_powers(ferry)
        assert code == 0, result["problems"]
        ferry.same()
        assert without_powers(ferry)[1]["copied"] == 0
    finally:
        kinds.unlock(tmp_path)


@powerless
def test_a_link_alone_into_a_read_only_folder(ferry, tmp_path):
    (ferry.src / "ro").mkdir()
    (ferry.src / "ro/a").write_bytes(b"a")
    os.chmod(ferry.src / "ro", 0o555)
    try:
        assert without_powers(ferry)[0] == 0
        os.chmod(ferry.src / "ro", 0o755)
        os.link(ferry.src / "ro/a", ferry.src / "ro/b")
        os.chmod(ferry.src / "ro", 0o555)
        code, result = without_powers(ferry)
        assert code == 0, result["problems"]
        ferry.same()
    finally:
        kinds.unlock(tmp_path)


@powerless
def test_an_unreadable_file_and_folder_are_named_and_the_rest_copied(ferry, tmp_path):
    for name in ("a", "secret", "locked/x", "listed only/y"):
        (ferry.src / name).parent.mkdir(exist_ok=True)
        (ferry.src / name).write_bytes(name.encode())
    os.chmod(ferry.src / "secret", 0)
    os.chmod(ferry.src / "locked", 0)
    os.chmod(ferry.src / "listed only", 0o444)
    try:
        for _ in range(2):
            code, result = without_powers(ferry)
            assert code == 3
            found = {(problem["code"], problem["path"]) for problem in result["problems"]}
            assert ("SF-203", "secret") in found
            assert ("SF-205", "locked") in found
            assert any(path.startswith("listed only") for _, path in found), "what could not be looked at must be named"
            assert (ferry.dst / "a").read_bytes() == b"a"
    finally:
        kinds.unlock(ferry.src)
    (ferry.src / "secret").chmod(0o644)
    assert without_powers(ferry)[0] == 0
    ferry.same()


@powerless
def test_a_folder_of_the_destination_that_cannot_be_entered_is_named_and_the_rest_copied(ferry, tmp_path):
    for name in ("a", "locked/x"):
        (ferry.src / name).parent.mkdir(exist_ok=True)
        (ferry.src / name).write_bytes(name.encode())
    (ferry.dst / "locked").mkdir(parents=True)
    os.chown(ferry.dst / "locked", 1234, 1234)
    os.chmod(ferry.dst / "locked", 0)
    try:
        code, result = without_powers(ferry)
        assert code == 3, result["problems"]
        assert any(problem["path"].startswith("locked") for problem in result["problems"])
        assert (ferry.dst / "a").read_bytes() == b"a"
    finally:
        kinds.unlock(tmp_path)


@powerless
def test_a_destination_that_may_not_be_written_is_1_before_the_first_byte(ferry, tmp_path):
    (ferry.src / "a").write_bytes(b"a")
    locked = tmp_path / "locked"
    locked.mkdir()
    os.chown(locked, 1234, 1234)
    os.chmod(locked, 0o755)
    ferry.dst = locked / "dst"
    code, result = without_powers(ferry)
    assert (code, [problem["code"] for problem in result["problems"]]) == (1, ["SF-301"])
    assert os.listdir(locked) == []


# -- deep trees ------------------------------------------------------------------------------------------------------


def test_paths_beyond_path_max(ferry):
    kinds.deep(str(ferry.src))
    assert max(len(path) for path, *_ in walk(ferry.src)) > 4096
    assert ferry.run(0).copied == 40
    ferry.same()
    assert ferry.run(0).skipped == 40
    lines = (ferry.records / "manifest.xxh128").read_bytes().splitlines()
    assert len(lines) == 40


def test_more_levels_than_a_recursive_walk_survives(ferry):
    kinds.many_levels(str(ferry.src))
    try:
        ferry.run(0)
        assert ferry.run(0).skipped == 1
        here = subprocess.run(["find", ".", "-name", "bottom"], cwd=ferry.dst, capture_output=True, check=True).stdout
        assert here.count(b"/") == 1101
    finally:
        for root in (ferry.src, ferry.dst):
            subprocess.run(["rm", "-rf", root / "d"], check=True)


@pytest.mark.parametrize("limit", [256, 1024])
def test_more_folders_than_descriptors_may_be_open(ferry, limit):
    for number in range(500):
        (ferry.src / f"folder{number}").mkdir()
        (ferry.src / f"folder{number}/file").write_bytes(b"%d" % number)
    command = [os.path.join(os.path.dirname(sys.executable), "scopeferry"), "transfer", str(ferry.src), str(ferry.dst)]
    done = subprocess.run(
        ["prlimit", f"--nofile={limit}:{limit}", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ferry.same()


@pytest.mark.parametrize("chunk", [64, pytest.param(4096, marks=pytest.mark.slow)])
def test_a_folder_larger_than_what_is_held_in_memory(ferry, monkeypatch, chunk):
    from scopeferry.copying import plan

    monkeypatch.setattr(plan, "CHUNK", chunk)
    for number in range(3 * chunk // 2):
        (ferry.src / f"{number:05}").write_bytes(b"%d" % number)
    count = 3 * chunk // 2
    assert ferry.run(0).copied == count
    (ferry.src / "00007").unlink()
    (ferry.src / "new").write_bytes(b"new")
    (ferry.dst / "extra").write_bytes(b"extra")
    result = ferry.run(0)
    assert (result.copied, result.skipped, result.extras) == (1, count - 1, 1)
    assert [problem.code for problem in result.problems] == ["SF-903"]


# -- the roots -------------------------------------------------------------------------------------------------------


def test_an_empty_source(ferry):
    result = ferry.run(0)
    assert (result.items, os.listdir(ferry.dst)) == (0, [])
    assert ferry.run(0).exit_code == 0


def test_one_file_to_a_new_name(ferry, tmp_path):
    (ferry.src / "a.tif").write_bytes(b"data")
    (ferry.src / "b.tif").write_bytes(b"not this one")
    os.utime(ferry.src / "a.tif", ns=(kinds.OLD_NS, kinds.OLD_NS))
    for copied in (1, 0):
        result = ferry.run(0, src=ferry.src / "a.tif", dst=tmp_path / "new.tif")
        assert result.copied == copied
    assert (tmp_path / "new.tif").read_bytes() == b"data"
    assert os.stat(tmp_path / "new.tif").st_mtime_ns == kinds.OLD_NS
    assert {"src", "new.tif", "new.tif.scopeferry"} == set(os.listdir(tmp_path))
    subprocess.run(
        ["xxhsum", "-c", "--strict", "new.tif.scopeferry/manifest.xxh128"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_one_file_into_a_folder(ferry, tmp_path):
    (ferry.src / "a.tif").write_bytes(b"data")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/other").write_bytes(b"other")
    for copied in (1, 0):
        assert ferry.run(0, src=ferry.src / "a.tif", dst=tmp_path / "folder").copied == copied
    assert (tmp_path / "folder/a.tif").read_bytes() == b"data"
    assert (tmp_path / "folder/other").read_bytes() == b"other"


def test_one_file_over_other_content_is_refused(ferry, tmp_path, codes):
    (ferry.src / "a.tif").write_bytes(b"data")
    (tmp_path / "there.tif").write_bytes(b"theirs")
    for _ in range(2):
        result = ferry.run(5, src=ferry.src / "a.tif", dst=tmp_path / "there.tif")
        assert set(codes(result)) == {"SF-501"}
    assert (tmp_path / "there.tif").read_bytes() == b"theirs"


def test_one_file_that_changed_is_sent_again(ferry, tmp_path):
    (ferry.src / "a.tif").write_bytes(b"data")
    ferry.run(0, src=ferry.src / "a.tif", dst=tmp_path / "new.tif")
    (ferry.src / "a.tif").write_bytes(b"a later version")
    assert ferry.run(0, src=ferry.src / "a.tif", dst=tmp_path / "new.tif").replaced == 1
    assert (tmp_path / "new.tif").read_bytes() == b"a later version"


def test_a_record_folder_of_an_earlier_copy_is_not_copied(ferry, codes):
    (ferry.src / "a").write_bytes(b"a")
    (ferry.src / ".scopeferry").mkdir()
    (ferry.src / ".scopeferry/manifest.xxh128").write_bytes(b"ours")
    (ferry.src / "run.scopeferry").mkdir()
    (ferry.src / "run.scopeferry/theirs").write_bytes(b"a folder like any other")
    result = ferry.run(0)
    assert codes(result) == {"SF-905": [".scopeferry"]}
    assert not (ferry.dst / ".scopeferry").exists()
    assert (ferry.dst / "run.scopeferry/theirs").exists()


# -- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ([("include", "**/*.tif")], {"a.tif", "sub/b.tif", "sub/deep/c.tif"}),
        ([("include", "*.tif")], {"a.tif"}),
        ([("exclude", "sub/")], {"a.tif", "a.txt", "other/d.tif"}),
        ([("exclude", "**/*.txt")], {"a.tif", "sub/b.tif", "sub/deep/c.tif", "other/d.tif"}),
        ([("exclude", "**"), ("include", "sub/**")], {"sub/b.tif", "sub/b.txt", "sub/deep/c.tif"}),
        ([("exclude", "sub/"), ("include", "sub/deep/**")], {"a.tif", "a.txt", "other/d.tif", "sub/deep/c.tif"}),
    ],
    ids=["below", "here", "no folder", "no kind", "one folder", "back in"],
)  # fmt: skip
def test_what_is_selected_is_copied_and_written_into_the_record(ferry, rules, taken):
    for name in ("a.tif", "a.txt", "sub/b.tif", "sub/b.txt", "sub/deep/c.tif", "other/d.tif"):
        (ferry.src / name).parent.mkdir(parents=True, exist_ok=True)
        (ferry.src / name).write_bytes(name.encode())
    if ("include", "**/*.tif") in rules:
        taken = taken | {"other/d.tif"}
    ferry.run(0, select=tuple(rules))
    assert {str(path.relative_to(ferry.dst)) for path in ferry.dst.rglob("*") if path.is_file()} == taken
    head = ferry.lines()[0]
    assert head["include"] == [glob for kind, glob in rules if kind == "include"]
    assert head["exclude"] == [glob for kind, glob in rules if kind == "exclude"]


# -- groups of hard links over what is there already -------------------------------------------------------------------


def group(folder, *names, content=b"one inode"):
    (folder / names[0]).write_bytes(content)
    for name in names[1:]:
        os.link(folder / names[0], folder / name)


def test_a_group_over_a_group_of_other_content_is_replaced_as_a_group(ferry):
    group(ferry.src, "a", "b", "c", content=b"short")
    ferry.dst.mkdir()
    group(ferry.dst, "a", "b", content=b"theirs, longer")
    ferry.run(0, on_conflict="replace")
    ferry.same()
    assert len({os.stat(ferry.dst / name).st_ino for name in "abc"}) == 1
    assert ferry.run(0).skipped == 3


def test_a_group_edited_with_mtime_put_back_stays_a_group(ferry):
    from scopeferry.testing.trees import rewrite

    group(ferry.src, "a", "b", "c")
    ferry.run(0)
    rewrite(ferry.src / "a", b"another 1", keep_time=True)
    ferry.run(0)
    ferry.same()
    assert len({os.stat(ferry.dst / name).st_ino for name in "abc"}) == 1


@pytest.mark.parametrize("theirs", [b"theirs...", b"another size"], ids=["same size", "another size"])
def test_keep_both_of_one_name_of_a_group_links_the_others_to_ours(ferry, theirs):
    group(ferry.src, "a", "b", "c")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(theirs)
    for _ in range(2):
        ferry.run(0, on_conflict="keep-both")
        assert (ferry.dst / "a").read_bytes() == theirs
        assert {(ferry.dst / name).read_bytes() for name in "bc"} == {b"one inode"}
    assert len([path for path in ferry.dst.iterdir() if ".scopeferry-" in path.name]) == 1


def test_a_first_name_swapped_by_somebody_is_not_linked_to(ferry, codes):
    group(ferry.src, "a", "b")

    def swap(*_):
        (ferry.dst / "x").write_bytes(b"theirs, quite different")
        os.replace(ferry.dst / "x", ferry.dst / "a")

    with Steps() as steps:
        steps.after("flush_folder", swap)
        result = ferry.run_any()
    assert not (ferry.dst / "b").exists() or (ferry.dst / "b").read_bytes() == b"one inode"
    assert result.exit_code == 5, codes(result)


def test_an_attribute_removed_at_the_source_is_removed_from_the_copy(ferry):
    (ferry.src / "a").write_bytes(b"a")
    os.setxattr(ferry.src / "a", "user.lens", b"63x")
    os.setxattr(ferry.src / "a", "user.other", b"stays")
    ferry.run(0)
    os.removexattr(ferry.src / "a", "user.lens")
    ferry.run(0)
    ferry.same()


def test_an_attribute_that_a_copy_had_before_it_was_adopted(ferry):
    """It goes as the mode and the time go that the file had; the record says what it was."""
    (ferry.src / "a").write_bytes(b"a")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"a")
    os.setxattr(ferry.dst / "a", "user.theirs", b"somebody's")
    ferry.run(0)
    ferry.same()
    assert base64.b64decode(ferry.entry("a")["xattrs_were"]["user.theirs"]) == b"somebody's"


@pytest.mark.parametrize("adopted", [False, True])
def test_an_attribute_of_a_file_server_stays(ferry, adopted):
    """Samba keeps one at each file that a client has looked at."""
    (ferry.src / "a").write_bytes(b"a")
    os.setxattr(ferry.src / "a", "user.lens", b"63x")
    if adopted:
        ferry.dst.mkdir()
        (ferry.dst / "a").write_bytes(b"a")
    else:
        ferry.run(0)
        os.removexattr(ferry.src / "a", "user.lens")
    os.setxattr(ferry.dst / "a", "user.DOSATTRIB", b"0x20")
    ferry.run(0)
    assert os.getxattr(ferry.dst / "a", "user.DOSATTRIB") == b"0x20"
    assert ("user.lens" in os.listxattr(ferry.dst / "a")) == adopted


def test_an_attribute_that_somebody_gave_to_our_copy_stays(ferry):
    (ferry.src / "a").write_bytes(b"a")
    os.setxattr(ferry.src / "a", "user.lens", b"63x")
    ferry.run(0)
    os.removexattr(ferry.src / "a", "user.lens")
    os.setxattr(ferry.dst / "a", "user.xdg.tags", b"for the paper")
    ferry.run(0)
    assert os.listxattr(ferry.dst / "a") == ["user.xdg.tags"]


def test_what_we_gave_is_known_from_the_records_too(ferry, state):
    (ferry.src / "a").write_bytes(b"a")
    os.setxattr(ferry.src / "a", "user.lens", b"63x")
    ferry.run(0)
    os.removexattr(ferry.src / "a", "user.lens")
    shutil.rmtree(state)
    ferry.run(0)
    ferry.same()


def test_what_is_kept_beside_is_no_extra(ferry):
    (ferry.src / "a").write_bytes(b"ours")
    ferry.dst.mkdir()
    (ferry.dst / "a").write_bytes(b"theirs, longer")
    ferry.run(0, on_conflict="keep-both")
    assert ferry.run(0, on_conflict="keep-both").extras == 0


def test_what_is_no_item_is_said_and_not_counted(ferry, codes):
    (ferry.src / "a").write_bytes(b"a")
    os.mkfifo(ferry.src / "fifo")
    (ferry.src / ".sf-0123456789abcdef-01234567.part").write_bytes(b"left by a copy into the source")
    for _ in range(2):
        result = ferry.run(0)
        assert (result.items, result.copied + result.skipped) == (1, 1)
        assert result.details["bytes_total"] == 1
        assert codes(result) == {"SF-901": ["fifo"], "SF-905": [".sf-0123456789abcdef-01234567.part"]}
    assert os.listdir(ferry.dst) == ["a"]


def test_an_equal_copy_whose_names_are_files_of_their_own_becomes_a_group(ferry):
    """`cp -r` knows no hard links: what it made is adopted, and is one inode as at the source; each counts once."""
    group(ferry.src, "a", "b", "c")
    (ferry.src / "alone").write_bytes(b"alone")
    subprocess.run(["cp", "-r", "--preserve=timestamps", ferry.src, ferry.dst], check=True)
    assert len({os.stat(ferry.dst / name).st_ino for name in "abc"}) == 3
    result = ferry.run(0)
    assert (result.adopted, result.copied, result.bytes) == (4, 0, 0)
    ferry.same()
    assert len({os.stat(ferry.dst / name).st_ino for name in "abc"}) == 1
    again = ferry.run(0)
    assert (again.skipped, again.copied, again.checked) == (4, 0, 0)


def test_a_name_of_another_content_is_not_linked_over(ferry):
    group(ferry.src, "a", "b", "c")
    ferry.dst.mkdir()
    for name in "ab":
        (ferry.dst / name).write_bytes(b"one inode")
    (ferry.dst / "c").write_bytes(b"ONE INODE")
    assert ferry.run(5).adopted == 2
    assert (ferry.dst / "c").read_bytes() == b"ONE INODE"
    assert (ferry.dst / "a").samefile(ferry.dst / "b")


def test_hard_links_of_a_symbolic_link_are_a_loss(ferry):
    (ferry.src / "a").symlink_to("nowhere")
    os.link(ferry.src / "a", ferry.src / "b", follow_symlinks=False)
    (ferry.src / "c").symlink_to("nowhere")
    for _ in range(2):
        result = ferry.run(0)
        assert result.lost == {"hardlinks": 1}
    assert {os.readlink(ferry.dst / name) for name in "abc"} == {"nowhere"}
