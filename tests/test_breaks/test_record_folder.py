"""Nothing is written or removed through a link that stands where a record folder should be."""

import pytest


@pytest.mark.parametrize("command", ["transfer", "verify", "repair"])
def test_a_link_for_a_record_folder_is_refused(program, small_files, tmp_path, command):
    src, dst = small_files(tmp_path / "src", 2), tmp_path / "dst"
    program.run("transfer", src, dst)
    (tmp_path / "dst.scopeferry").rename(tmp_path / "theirs")
    (tmp_path / "theirs/manifest.theirs.part").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*")}
    (tmp_path / "dst.scopeferry").symlink_to("theirs")
    found = program.run(command, *([dst] if command == "verify" else [src, dst]))
    assert (found["exit_code"], found["codes"]) == (5, {"SF-504"})
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").rglob("*")} == before
