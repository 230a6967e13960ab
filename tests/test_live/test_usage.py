"""The command: three ways to name targets, softcopy's options, what wins, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scopeferry.cli import live
from scopeferry.copying.target import LiveSettings, Target
from scopeferry.errors import UsageError

TWO = "targets:\n  - {source: a, destination: out/a}\n  - {source: b, destination: out/b}\n"
CODE = """
import importlib, sys
main = importlib.import_module("scopeferry.cli.main")
main.COMMANDS.setdefault("live", ("live", "live SRC DST", "copy while it is written"))
sys.exit(main.main())
"""


@pytest.fixture(autouse=True)
def lab(tmp_path, monkeypatch):
    """Two folders and a targets file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "targets.yaml").write_text(TWO)
    return tmp_path


@pytest.fixture
def ferry(lab):
    """The command, also where this version does not list it yet."""

    def run(*words, **more):
        return subprocess.run([sys.executable, "-c", CODE, "live", *map(str, words)], capture_output=True, text=True,
                              check=False, timeout=60, **more)  # fmt: skip

    return run


def understood(*words):
    return live.understood(live.parser().parse(list(words)))


def test_source_and_destination():
    targets, settings, interval_s = understood("a", "out/a")
    assert targets == [Target("a", "out/a")]
    assert settings == LiveSettings()
    assert interval_s == 30


@pytest.mark.parametrize("words", [("--targets", "targets.yaml"), ("targets.yaml",), ("./targets.yaml",)])
def test_a_file_of_targets(words):
    targets, _, _ = understood(*words)
    assert targets == [Target("a", "out/a"), Target("b", "out/b")]


def test_any_name_will_do_for_a_file(lab):
    (lab / "targets.yaml").rename(lab / "monday")
    assert len(understood("monday")[0]) == 2


def test_each_option_that_softcopy_documents(lab):
    targets, settings, _ = understood(
        "targets.yaml", "--verbose", "--nprocs", "3", "--sleep-time", "0.5", "--wait-for-source", "False"
    )
    assert settings.workers == 6
    assert {(target.sleep_time_s, target.wait_for_source) for target in targets} == {(0.5, False)}
    assert understood("--nprocs=40", "targets.yaml")[1].workers == 64
    assert understood("a", "out", "--nprocs", "8")[1].workers == 8
    assert understood("a", "out", "--sleep-time", "0")[0][0].sleep_time_s == 0
    assert understood("a", "out")[0][0].wait_for_source


@pytest.mark.parametrize("word", ["true", "t", "yes", "y", "on", "1", "TRUE", "Yes", " on "])
def test_what_says_yes(word):
    assert understood("a", "out", "--wait-for-source", word)[0][0].wait_for_source is True


@pytest.mark.parametrize("word", ["false", "f", "no", "n", "off", "0", "FALSE", "No", "oFF"])
def test_what_says_no(word):
    assert understood("a", "out", "--wait-for-source", word)[0][0].wait_for_source is False


def test_the_last_said_of_workers_and_nprocs_holds(lab, monkeypatch):
    assert understood("targets.yaml", "--nprocs", "3", "--workers", "5")[1].workers == 5
    assert understood("targets.yaml", "--workers", "5", "--nprocs", "3")[1].workers == 6
    monkeypatch.setenv("SCOPEFERRY_LIVE_NPROCS", "2")
    assert understood("targets.yaml")[1].workers == 4
    assert understood("targets.yaml", "--workers", "9")[1].workers == 9
    monkeypatch.delenv("SCOPEFERRY_LIVE_NPROCS")
    (lab / "scopeferry.toml").write_text("[live]\nworkers = 7\n")
    assert understood("targets.yaml")[1].workers == 7
    assert understood("targets.yaml", "--nprocs", "1")[1].workers == 2


def test_every_option_arrives():
    targets, settings, interval_s = understood(
        "a", "out", "--workers", "3", "--finish", "marker=*.done", "--finish", "quiet=2h", "--settle", "1m", "--expect",
        "dense", "--writer", "zarrs", "--writer-pid", "7", "--watch", "scan", "--scan-interval", "100ms", "--limit",
        "80MB", "--gentle", "off", "--verify", "sample:5%", "--on-conflict", "replace", "--stale", "keep", "--patience",
        "5m", "--exclude", "*.tmp", "--include", "x.tmp", "--dry-run", "--journal", "j", "--records", "r", "--interval",
        "1s",
    )  # fmt: skip
    assert targets == [
        Target("a", "out", "", ("marker=*.done", "quiet=2h"), 60.0, True, "dense", "zarrs", 7, 0.0, True, "sample:5%",
               "replace", "keep", 300.0, "scan", 0.1)
    ]  # fmt: skip
    select = (("exclude", "*.tmp"), ("include", "x.tmp"))
    assert settings == LiveSettings(3, 80e6, "off", select, dry_run=True, journal="j", records="r")
    assert interval_s == 1


MIXTURES = {
    "nothing": ((), "needs SRC and DST, or a targets file"),
    "a source alone": (("a",), "no destination for a"),
    "a file that is not there": (("nope.yaml",), "no targets file, and no destination: nope.yaml"),
    "both": (("a", "out", "--targets", "targets.yaml"), "--targets FILE stands alone"),
    "one and a half": (("a", "--targets", "targets.yaml"), "--targets FILE stands alone"),
    "two files": (("targets.yaml", "--targets", "targets.yaml"), "--targets FILE stands alone"),
    "three": (("a", "b", "c"), "does not take 'c'"),
    "a value too few": (("a", "out", "--targets"), "--targets needs a value"),
    "a file that is not there, named": (("--targets", "nope.yaml"), "nope.yaml: No such file"),
    "a folder of targets": (("--targets", "a"), "a: Is a directory"),
    "a misspelt option": (("a", "out", "--nproc", "3"), "no option --nproc"),
    "no processes": (("a", "out", "--nprocs", "0"), "--nprocs: 0 is less than 1"),
    "no workers": (("a", "out", "--workers", "65"), "--workers: 65 is not between 1 and 64"),
    "half a worker": (("a", "out", "--workers", "0.5"), "--workers: not a whole number"),
    "time runs back": (("a", "out", "--sleep-time", "-1"), "--sleep-time: '-1' is not between"),
    "neither": (("a", "out", "--wait-for-source", "maybe"), "--wait-for-source: neither true nor false"),
    "no time": (("a", "out", "--settle", "soon"), "--settle: not a duration"),
    "no rule": (("a", "out", "--finish", ""), "--finish: not a text"),
    "not a rule": (("a", "out", "--finish", "markr=x"), "no finish rule: 'markr=x'"),
    "a rule without its value": (("a", "out", "--finish", "marker"), "finish rule marker takes a value"),
    "no such profile": (("a", "out", "--finish", "profile=x"), "finish rule profile=x: no such profile"),
    "no writer": (("a", "out", "--writer", "tensorstor"), "--writer: 'tensorstor' is not known"),
    "no process": (("a", "out", "--writer-pid", "me"), "--writer-pid: not a whole number"),
    "no interval": (("a", "out", "--scan-interval", "0"), "--scan-interval: '0' is not between 10ms and 1h"),
    "no watching": (("a", "out", "--watch", "never"), "--watch: 'never' is not known"),
    "all": (("a", "out", "--verify", "all"), "--verify: 'all' is none of"),
    "no rate": (("a", "out", "--limit", "0"), "--limit: '0' is not a positive number"),
    "keep both": (("a", "out", "--on-conflict", "keep-both"), "--on-conflict: 'keep-both' is not known"),
    "no patience": (("a", "out", "--patience", "x"), "--patience: not a duration"),
}


@pytest.mark.parametrize(("words", "message"), MIXTURES.values(), ids=MIXTURES)
def test_a_mistake_is_one_line_and_nothing_is_made(ferry, lab, words, message):
    done = ferry(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("exit 2: ")
    assert message in done.stderr
    assert "   next: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in lab.rglob("*")) == ["a", "b", "targets.yaml"]


IN_THE_WAY = {
    "no source, and no waiting": ("SF-101", ("nope", "out/x/y", "--wait-for-source", "false")),
    "a file for a source": ("SF-118", ("--", "targets.yaml", "out/x/y")),
    "a file for a destination": ("SF-112", ("a", "targets.yaml")),
    "the same": ("SF-104", ("a", "./a")),
    "in itself": ("SF-103", ("a", "a/copy")),
    "around itself": ("SF-103", ("a", ".")),
    "no list of chunks": ("SF-105", ("a", "out", "--expect", "dnese")),
}


@pytest.mark.parametrize(("code", "words"), IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_what_is_in_the_way_is_one_line_and_nothing_is_made(ferry, lab, state, code, words):
    done = ferry(*words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"({code})" in done.stderr
    assert sorted(path.name for path in lab.rglob("*")) == ["a", "b", "targets.yaml"]
    assert not list(state.rglob("*"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TWO.replace("out/b", "out/a"), "SF-117"),
        (TWO.replace("out/b", "out/a/b"), "SF-117"),
        (TWO.replace("out/a", "b/x").replace("out/b", "a/x"), "SF-117"),
        (TWO + "  - {source: c, destination: out/c, wait_for_source: no}\n", "SF-101"),
    ],
)
def test_all_targets_are_looked_at_before_the_first_starts(ferry, lab, state, text, code):
    (lab / "targets.yaml").write_text(text)
    done = ferry("targets.yaml", "--finish", "now")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"({code})" in done.stderr
    assert sorted(path.name for path in lab.rglob("*")) == ["a", "b", "targets.yaml"]
    assert not list(state.rglob("*"))


def test_one_journal_for_several_targets(ferry):
    done = ferry("targets.yaml", "--journal", "j.sqlite")
    assert done.returncode == 2
    assert "--journal names one place, and there are 2 targets" in done.stderr


def test_a_mistake_in_the_file_is_named_with_its_line(ferry, lab):
    (lab / "targets.yaml").write_text(TWO.replace("source: b", "sorce: b"))
    done = ferry("targets.yaml")
    assert done.returncode == 2
    assert done.stderr == (
        "exit 2: targets.yaml:3: sorce is no key of a target (SF-116)   next: did you mean source?\n"
    )
    told = json.loads(ferry("targets.yaml", "--json").stdout)
    assert (told["command"], told["exit_code"], told["problems"][0]["code"]) == ("live", 2, "SF-116")
    (lab / "targets.yaml").write_bytes(b"II*\0\x08\0\0\0" * 999)
    done = ferry("targets.yaml")
    assert "next: a file alone must list targets" in done.stderr


def test_with_a_wrong_flag_the_file_is_not_blamed(lab):
    with pytest.raises(UsageError) as caught:
        understood("targets.yaml", "--settle", "soon")
    assert str(caught.value).startswith("--settle: ")
    assert caught.value.code == "SF-105"


def test_help_names_every_option(ferry):
    text = ferry("--help").stdout
    for option in ("--targets FILE", "--nprocs N", "--sleep-time TIME", "--wait-for-source BOOL", "--finish RULE"):
        assert option in text
    assert "\nexample:\n  $ scopeferry live" in text


def test_nothing_of_it_is_made_for_a_transfer():
    """Start-up counts: neither YAML nor what only `live` needs."""
    code = "import sys; from scopeferry.cli import main; main(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "transfer", "a", "out"], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"yaml", "graphlib", "scopeferry.copying.target", "scopeferry.reports.following"}
