"""A source in motion: each kind of change at each step of ``transfer.md`` 3.3.

Never torn under a final name, never exit code 0 with a mixture.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading

import pytest

from scopeferry.kernel.task import Control
from scopeferry.testing.steps import Steps, path_of
from scopeferry.testing.trees import random_bytes, rewrite

MIB = 1 << 20
ONE, TWO = random_bytes(1, 2 * MIB + 4321), random_bytes(2, 2 * MIB + 4321)


def edit(path):
    rewrite(path, TWO)


def edit_with_mtime_back(path):
    rewrite(path, TWO, keep_time=True)


def append(path):
    with open(path, "ab") as file:
        file.write(b"more" * 1000)


def cut(path):
    os.truncate(path, MIB + 17)


def replace(path):
    path.with_name("new").write_bytes(TWO)
    os.replace(path.with_name("new"), path)


def replace_with_mtime_back(path):
    stamp = os.stat(path).st_mtime_ns
    replace(path)
    os.utime(path, ns=(stamp, stamp))


def delete(path):
    path.unlink()


def become_folder(path):
    path.unlink()
    path.mkdir()


def become_link(path):
    path.unlink()
    path.symlink_to("/etc/passwd")


CHANGES = [
    edit,
    edit_with_mtime_back,
    append,
    cut,
    replace,
    replace_with_mtime_back,
    delete,
    become_folder,
    become_link,
]


def of_source(path):
    return lambda fd, *_: path_of(fd) == str(path)


def named(name):
    return lambda _, one, *__: one == name


#: step of 3.3 -> how it is hooked: (before or after, function of the system, which call, of what)
STEPS = {
    "before it is opened": lambda steps, path, what: steps.before("open_source", what, when=named(path.name)),
    "after it is opened": lambda steps, path, what: steps.before("create_part", what),
    "after the first block": lambda steps, path, what: steps.after("read_into", what, when=of_source(path)),
    "after the second block": lambda steps, path, what: steps.after("read_into", what, when=of_source(path), nth=2),
    "after the last block": lambda steps, path, what: steps.after("read_into", what, when=of_source(path), nth=3),
    "after it is looked at again": lambda steps, path, what: steps.before("flush_all", what),
    "before the read-back": lambda steps, path, what: steps.before("drop", what),
    "before the rename": lambda steps, path, what: steps.before("rename_new", what),
    "after the rename": lambda steps, path, what: steps.after("rename_new", what),
    "before the second listing": lambda steps, path, what: steps.before(
        "scan", what, when=of_source(path.parent), nth=2
    ),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("step", STEPS)
def test_a_change_during_the_copy_never_gives_a_mixture(ferry, quick, codes, step, change):
    path = ferry.src / "a"
    path.write_bytes(ONE)
    (ferry.src / "b").write_bytes(b"another one")
    versions = {ONE}
    once = []

    def happen(*_):
        if not once:
            once.append(1)
            change(path)
            if path.is_file() and not path.is_symlink():
                versions.add(path.read_bytes())

    with Steps() as steps:
        STEPS[step](steps, path, happen)
        result = ferry.run(workers=1)
    assert once
    found = (
        (ferry.dst / "a").read_bytes() if (ferry.dst / "a").is_file() and not (ferry.dst / "a").is_symlink() else None
    )
    assert found is None or found in versions, "a mixture of two versions"
    assert (ferry.dst / "b").read_bytes() == b"another one"
    if result.exit_code == 0:
        told = codes(result)
        if change in {delete, become_folder}:
            assert told.get("SF-903") == ["a"] or change is become_folder
        else:
            ferry.same()
    else:
        assert result.exit_code in {3, 5, 6}
        assert any(problem.path == "a" for problem in result.problems)
        if result.exit_code == 5:  # a shorter source must not empty the archive; another kind is never replaced
            assert change in {cut, become_link, become_folder}
            assert set(codes(result)) & {"SF-503", "SF-502"}
    if change in {edit, edit_with_mtime_back, append, replace, replace_with_mtime_back}:
        assert result.exit_code == 0, codes(result)
    if result.exit_code == 0:
        again = ferry.run(0)
        assert again.copied == again.replaced == again.repaired == 0


def test_a_constant_writer_is_named_and_the_run_ends_with_6(ferry, quick, codes):
    path = ferry.src / "a"
    path.write_bytes(ONE)
    (ferry.src / "b").write_bytes(b"quiet")
    counter = itertools.count()
    with Steps() as steps:
        steps.after(
            "read_into",
            lambda *_: rewrite(path, random_bytes(next(counter), 1000) + ONE[1000:]),
            when=of_source(path),
            times=0,
        )
        result = ferry.run(6)
    assert codes(result) == {"SF-601": ["a"]}
    assert sorted(os.listdir(ferry.dst)) == ["b"]
    assert result.state == "partial"
    ferry.run(0)
    ferry.same()


def test_a_source_that_moves_is_tried_again_after_growing_pauses(ferry, monkeypatch):
    path, waits, counter = ferry.src / "a", [], itertools.count()
    path.write_bytes(random_bytes(9, 5000))
    monkeypatch.setattr(Control, "sleep", lambda _self, seconds: waits.append(seconds))
    with Steps() as steps:
        steps.after(
            "read_into", lambda *_: rewrite(path, random_bytes(next(counter), 5000)), when=of_source(path), times=3
        )
        result = ferry.run(0)
    assert (result.copied, result.replaced, waits) == (1, 0, [0.1, 1.0, 5.0])
    ferry.same()


def test_a_constant_writer_alone_is_not_called_done(ferry, quick, codes):
    path = ferry.src / "a"
    path.write_bytes(ONE)
    with Steps() as steps:
        steps.after("read_into", lambda *_: os.utime(path), when=of_source(path), times=0)
        result = ferry.run(6)
    assert codes(result) == {"SF-601": ["a"]}
    assert os.listdir(ferry.dst) == []


def test_a_real_writer_that_appends_all_the_time(ferry, quick, codes):
    path = ferry.src / "log"
    path.write_bytes(ONE)
    for number in range(20):
        (ferry.src / f"f{number}").write_bytes(random_bytes(number, 5000))
    stop = threading.Event()

    def write():
        with open(path, "ab", buffering=0) as file:
            while not stop.wait(0.002):
                file.write(b"line\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = ferry.run()
    finally:
        stop.set()
        writer.join()
    assert result.exit_code in {0, 6}
    if result.exit_code == 6:
        assert codes(result) == {"SF-601": ["log"]}
    if (ferry.dst / "log").exists():
        assert path.read_bytes().startswith((ferry.dst / "log").read_bytes())
    ferry.run(0)
    ferry.same()


def test_a_real_writer_that_rewrites_in_place_gives_one_version_or_none(ferry, quick):
    """Every version is one byte repeated: a mixture shows."""
    path = ferry.src / "a"
    path.write_bytes(bytes(3 * MIB))
    stop = threading.Event()

    def write():
        for number in itertools.cycle(range(1, 256)):
            if stop.wait(0.001):
                return
            rewrite(path, bytes([number]) * (3 * MIB), keep_time=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = ferry.run()
    finally:
        stop.set()
        writer.join()
    if (ferry.dst / "a").exists():
        # a writer that is not atomic itself can be caught between two of its pages, never between two of our blocks
        assert result.exit_code in {0, 6}
    else:
        assert result.exit_code == 6
    ferry.run(0)
    ferry.same()


def test_a_new_file_is_found_by_the_second_listing(ferry):
    (ferry.src / "a").write_bytes(ONE)
    with Steps() as steps:
        steps.before("flush", lambda *_: (ferry.src / "late").write_bytes(b"late"))
        assert ferry.run(0).copied == 2
    ferry.same()


def test_new_files_without_end_are_named(ferry, codes):
    (ferry.src / "a").write_bytes(b"a")
    counter = itertools.count()
    with Steps() as steps:
        steps.after("rename_new", lambda *_: (ferry.src / f"late{next(counter)}").write_bytes(b"late"), times=0)
        result = ferry.run(6)
    assert len(codes(result)["SF-601"]) == 1
    assert result.copied == 4, "the first pass, and three more"
    ferry.run(0)
    ferry.same()


def test_a_file_gone_before_its_turn_is_named(ferry, codes):
    (ferry.src / "a").write_bytes(b"a")
    (ferry.src / "b").write_bytes(b"b")
    with Steps() as steps:
        steps.before("open_source", lambda *_: (ferry.src / "b").unlink(), when=named("b"))
        result = ferry.run(3)
    assert codes(result) == {"SF-202": ["b"]}
    assert os.listdir(ferry.dst) == ["a"]


def test_a_folder_gone_before_its_turn_is_named(ferry, codes):
    (ferry.src / "sub").mkdir()
    (ferry.src / "sub/a").write_bytes(b"a")
    (ferry.src / "b").write_bytes(b"b")

    def gone(*_):
        (ferry.src / "sub/a").unlink()
        (ferry.src / "sub").rmdir()

    with Steps() as steps:
        steps.before("open_source", gone, when=named("b"))
        result = ferry.run(3)
    assert codes(result)["SF-202"] == ["sub/a"]


def test_a_store_through_a_memory_map_is_noticed(ferry, quick):
    """A store into a page that is dirty already moves neither time, unless it was written back before the read."""
    import mmap

    path = ferry.src / "a"
    path.write_bytes(ONE)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:

        def store(*_):
            for at in (0, 2 * MIB):
                view[at : at + 4] = b"late"

        def dirty(*_):
            """Just before it is opened, so that nothing else has it written back: it is opened once more."""
            for at in (0, 2 * MIB):
                view[at : at + 4] = b"dirt"

        with Steps() as steps:
            steps.before("open_source", dirty, when=named("a"))
            steps.after("read_into", store, when=of_source(path))
            ferry.run(0)
        ferry.same()


def test_a_file_written_just_now_is_looked_at_once_more(ferry, quick):
    """When its batch has been read back: before it has a name, and not by the second listing alone."""
    path = ferry.src / "a"
    path.write_bytes(b"first")
    os.utime(path, (4e9, 4e9))  # later than any read
    with Steps() as steps:
        steps.after("flush", lambda *_: rewrite(path, b"later", keep_time=True))
        result = ferry.run(0)
    assert (result.copied, result.replaced, result.details["retries"]) == (1, 0, 1)
    ferry.same()


def test_a_folder_that_becomes_a_link_is_not_followed(ferry, tmp_path, codes):
    """The source is untrusted too: nothing outside of it is copied."""
    (ferry.src / "sub").mkdir()
    (ferry.src / "sub/a").write_bytes(b"inside")
    (ferry.src / "b").write_bytes(b"b")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/a").write_bytes(b"secret")

    def swap(*_):
        os.rename(ferry.src / "sub", tmp_path / "away")
        (ferry.src / "sub").symlink_to(tmp_path / "secret")

    with Steps() as steps:
        steps.before("open_source", swap, when=named("b"))
        result = ferry.run(workers=1)
    assert result.exit_code in {3, 5}
    assert b"secret" not in [path.read_bytes() for path in ferry.dst.rglob("*") if path.is_file()]


def test_what_stops_a_run_is_not_taken_for_a_source_in_motion(ferry, codes, quick):
    """The destination becomes read-only when some files are there: the others are open, and nobody writes them."""
    for name in "abcd":
        (ferry.src / name).write_bytes(random_bytes(3, 5000))

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with Steps() as steps:
        steps.before("create_part", read_only, nth=3, times=0)
        result = ferry.run(1, workers=1)
    assert list(codes(result)) == ["SF-301"]
    assert ferry.run(0).adopted + result.copied == 2
    ferry.same()
