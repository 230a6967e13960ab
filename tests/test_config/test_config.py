"""Defaults < files (machine, user, project) < .env < variables < flags; a misspelt key is named with the nearest."""

import json
import os
import subprocess
import sys

import pytest

from scopeferry.config import FLAGS, SECTIONS, Setting, TransferSettings, find, fold
from scopeferry.errors import UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project, a user's configuration, and an environment."""
    monkeypatch.chdir(tmp_path)
    user = tmp_path / "config/scopeferry"
    user.mkdir(parents=True)

    environ_ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}

    class Place:
        project = tmp_path / "scopeferry.toml"
        user_file = user / "scopeferry.toml"
        dotenv = tmp_path / ".env"
        environ = environ_

        def read(self, *flags):
            return fold("transfer", [*find("transfer", self.environ), *(Setting(*flag, FLAGS) for flag in flags)])

    return Place()


def test_layers(place):
    settings = place.read()
    assert (settings.get("workers"), settings.place("workers")) == (None, "default")
    place.user_file.write_text('# mine\n[transfer]\nworkers = 3\nlimit = "50MB"\n')
    assert place.read().get("workers") == 3
    assert place.read().place("workers") == f"{place.user_file}:3: workers"
    place.project.write_text("[transfer]\nworkers = 4\n")
    assert place.read().get("workers") == 4
    assert place.read().get("limit") == 50e6
    place.dotenv.write_text("OTHER=1\nexport SCOPEFERRY_TRANSFER_WORKERS='5' # five\n")
    assert (place.read().get("workers"), place.read().place("workers")) == (5, ".env:2: SCOPEFERRY_TRANSFER_WORKERS")
    place.environ["SCOPEFERRY_TRANSFER_WORKERS"] = "6"
    assert (place.read().get("workers"), place.read().place("workers")) == (6, "SCOPEFERRY_TRANSFER_WORKERS")
    flagged = place.read(("workers", "7", "--workers"))
    assert (flagged.get("workers"), flagged.place("workers")) == (7, "--workers")
    assert flagged.transfer() == TransferSettings(workers=7, limit=50e6)


def test_what_adds_and_what_replaces(place):
    place.user_file.write_text('[transfer]\nexclude = ["*.tmp"]\nkeep = ["owner"]\ndigest = ["sha256", "md5"]\n')
    place.project.write_text('[transfer]\ninclude = ["keep.tmp"]\nno-keep = "xattrs"\non_conflict = "replace"\n')
    settings = place.read(
        ("exclude", "a,b", "--exclude"), ("digest", "blake3", "--digest"), ("digest", "sha1", "--digest")
    )
    made = settings.transfer()
    assert made.select == (("exclude", "*.tmp"), ("include", "keep.tmp"), ("exclude", "a"), ("exclude", "b"))
    assert made.keep == {"times", "mode", "links", "hardlinks", "holes", "owner"}
    assert made.digest == ("blake3", "sha1")
    assert made.on_conflict == "replace"
    assert place.read().transfer().digest == ("sha256", "md5")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "[transfer]\n\nwokers = 3\n",
            "scopeferry.toml:3: wokers is no setting of [transfer]",
            "did you mean workers?",
        ),
        ("[trasnfer]\nworkers = 3\n", "scopeferry.toml:1: trasnfer is no section", "did you mean transfer?"),
        ("workers = 3\n", "scopeferry.toml:1: workers is no section", "known: transfer"),
        ("[transfer]\nworkers = 300\n", "scopeferry.toml:2: workers: 300 is not between 1 and 64", ""),
        ("[transfer]\nverify = 3\n", "scopeferry.toml:2: verify: 3 is none of full, all, none", ""),
        ("[transfer]\nstrict = 1\n", "scopeferry.toml:2: strict: neither true nor false: 1", ""),
        ("[transfer]\nkeep = [1]\n", "scopeferry.toml:2: keep: not a list of words: [1]", ""),
        ("[transfer]\nlimit = -5\n", "scopeferry.toml:2: limit: -5 is not a positive number", ""),
        ("[transfer]\non-conflict = 'replce'\n", "scopeferry.toml:2: on-conflict: 'replce' is not known", "replace?"),
        ("[transfer\n", "scopeferry.toml: not TOML: ", ""),
        ("transfer = 3\n", "scopeferry.toml:1: transfer is no section", ""),
    ],
)
def test_misspelt_in_a_file(place, text, message, hint):
    place.project.write_text(text)
    with pytest.raises(UsageError) as caught:
        place.read()
    assert str(caught.value).startswith(message)
    assert hint in caught.value.hint
    assert caught.value.code == "SF-109"


def test_misspelt_variables(place):
    place.dotenv.write_text("\nSCOPEFERRY_TRANSFER_LIMTI=3MB\n")
    with pytest.raises(UsageError, match=r"^\.env:2: SCOPEFERRY_TRANSFER_LIMTI is no variable") as caught:
        place.read()
    assert caught.value.hint == "did you mean SCOPEFERRY_TRANSFER_LIMIT?"
    place.dotenv.unlink()
    place.environ["SCOPEFERRY_TRANSFER_WORKER"] = "3"
    with pytest.raises(UsageError, match=r"^environment: SCOPEFERRY_TRANSFER_WORKER is no variable") as caught:
        place.read()
    assert caught.value.hint == "did you mean SCOPEFERRY_TRANSFER_WORKERS?"


def test_unreadable(place):
    place.project.mkdir()
    with pytest.raises(UsageError, match=r"scopeferry\.toml: cannot be read: Is a directory"):
        place.read()
    place.project.rmdir()
    place.project.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"not TOML"):
        place.read()


def test_nothing_is_read_where_nothing_is(place):
    code = "import sys; from scopeferry.config import find; list(find('transfer', {})); print('tomllib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_setting_has_a_default_and_is_read_twice_alike():
    for section, readers in SECTIONS.items():
        settings = fold(section, [])
        for key, read in readers.items():
            value = settings.get("select" if key in {"include", "exclude"} else key)
            if value is not None and key not in {"include", "exclude", "no-keep", "keep"}:
                assert read(value) == value


def test_the_command_shows_origins(place, state):
    place.project.write_text('[transfer]\nlimit = "50MB"\nexclude = ["*.tmp"]\n')
    env = {**os.environ, **place.environ, "SCOPEFERRY_TRANSFER_VERIFY": "all"}
    show = [sys.executable, "-m", "scopeferry", "config", "show"]
    lines = subprocess.run([*show, "--origin"], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "[transfer]"
    found = {
        line.split(" = ")[0]: [part.strip() for part in line.split(" = ")[1].rsplit("  # ", 1)]
        for line in lines[: lines.index("[live]")]
        if " = " in line
    }
    assert found["verify"] == ['"all"', "SCOPEFERRY_TRANSFER_VERIFY"]
    assert found["limit"] == ["50000000", "scopeferry.toml:2: limit"]
    assert found["exclude"] == ['["*.tmp"]', "scopeferry.toml:3: exclude"]
    assert found["names"] == ['"refuse"', "default"]
    told = json.loads(subprocess.run([*show, "--json"], env=env, capture_output=True, text=True, check=True).stdout)
    assert told["settings"]["transfer"]["verify"] == {"value": "all", "origin": "SCOPEFERRY_TRANSFER_VERIFY"}
    shown = subprocess.run(show, env=env, capture_output=True, text=True, check=True).stdout
    place.project.write_text(shown)  # what is shown is a file that can be read
    assert place.read().transfer().verify == "all"


def test_the_command_names_file_and_line(place, tmp_path):
    place.project.write_text("[transfer]\nwokers = 3\n")
    (tmp_path / "run7").mkdir()
    env = {**os.environ, **place.environ}
    done = subprocess.run(
        [sys.executable, "-m", "scopeferry", "transfer", "run7", "out"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "exit 2: scopeferry.toml:2: wokers is no setting of [transfer] (SF-109)   next: did you mean workers?\n"
    )
    assert not (tmp_path / "out").exists()
