"""What a killed run left is removed, also where no folder is listed: beside a file, below a folder that is gone."""

import shutil


def left_in(folder):
    return sorted(path.name for path in folder.rglob(".sf-*.part"))


def test_beside_a_single_file(program, tmp_path):
    src, dst = tmp_path / "run.nd2", tmp_path / "dst"
    src.write_bytes(bytes(100_000))
    dst.mkdir()
    theirs = dst / ".sf-0123456789abcdef-01234567.part"
    theirs.write_bytes(b"of another file")
    program.killed_at("renameat2", 1, "transfer", src, dst)
    assert len(left_in(dst)) == 2
    found = program.run("transfer", src, dst)
    assert (found["exit_code"], found["extras"]) == (0, 0)
    assert left_in(dst) == [theirs.name]


def test_below_a_folder_that_is_gone(program, small_files, tmp_path):
    src, dst = small_files(tmp_path / "src", 8, folders=2), tmp_path / "dst"
    program.killed_at("renameat2", 1, "transfer", src, dst)
    assert left_in(dst / "f1")
    shutil.rmtree(src / "f1")
    assert "SF-202" in program.run("transfer", src, dst)["codes"]
    assert left_in(dst) == []
