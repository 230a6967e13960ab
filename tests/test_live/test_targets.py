"""A targets file says what softcopy's says, and more; every mistake in it is named with its line, before anything."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopeferry.config import FLAGS, Setting, find
from scopeferry.copying.target import LiveSettings, Target, option
from scopeferry.errors import UsageError
from scopeferry.jobs.targets import check
from scopeferry.jobs.targets_file import OF_TARGET, SETTINGS, read_targets, target_of

SOFTCOPY = """\
# The toplevel key for everything is called `targets`. It is a list of dicts, and must contain at least one pair.
targets:
  # The first dict here corresponds to the first copy operation
  - source: /path/to/in-progress/acquisition/data.zarr
    destination: /path/to/server/where/softcopy/should/move/the/data.zarr
  # The subsequent dicts (if any) will all describe other copies. Everything will happen in parallel
  - source: /path/to/other/source.zarr
    destination: /path/to/other/destination.zarr
  # ...
"""
PAIR = "targets:\n  - source: /a\n    destination: /b\n"


@pytest.fixture
def listed(tmp_path):
    """Write a file, and read it."""

    def read(text, **more):
        path = tmp_path / "targets.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_targets(str(path), **more)

    return read


def test_the_file_that_softcopy_documents(listed):
    first, second = listed(SOFTCOPY)
    assert first.source == "/path/to/in-progress/acquisition/data.zarr"
    assert first.destination == "/path/to/server/where/softcopy/should/move/the/data.zarr"
    assert (first.name, second.name) == ("data.zarr", "destination.zarr")
    assert second == Target("/path/to/other/source.zarr", "/path/to/other/destination.zarr")


def test_settings_of_a_target_and_of_all(listed, state):
    first, second = listed(
        """
defaults: {verify: none, settle: 1m, wait_for_source: no}
targets:
  - {source: ~/scan/plate.ome.zarr, destination: rel/plate.ome.zarr, name: plate, finish: [marker=done, quiet=2h],
     expect: dense, writer: zarrs, writer_pid: 4711, sleep_time: .5, scan_interval: 100ms, stale: keep, patience: 5m}
  - {source: 'D:\\new\\run1', destination: "E:/run1", finish: now, on_conflict: replace, watch: scan, verify: "full"}
"""
    )
    assert first == Target(
        f"{os.environ['HOME']}/scan/plate.ome.zarr", "rel/plate.ome.zarr", "plate", ("marker=done", "quiet=2h"), 60.0,
        True, "dense", "zarrs", 4711, 0.5, False, "none", "refuse", "keep", 300.0, "auto", 0.1,
    )  # fmt: skip
    assert (second.source, second.destination, second.finish) == (r"D:\new\run1", "E:/run1", ("now",))
    assert (second.on_conflict, second.watch, second.verify, second.settle_s) == ("replace", "scan", "full", 60.0)


def test_what_wins_over_what(listed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scopeferry.toml").write_text(
        '[live]\nsettle = "1s"\nverify = "none"\nstale = "keep"\nfinish = ["grid"]'
    )
    environ = {"SCOPEFERRY_LIVE_VERIFY": "sample:5%", "SCOPEFERRY_LIVE_WATCH": "scan"}
    flags = [Setting("watch", "events", "--watch", FLAGS)]
    text = f"defaults: {{verify: full, settle: 2s}}\n{PAIR}    settle: 3s\n  - {{source: /c, destination: /d}}\n"
    first, second = listed(text, configured=find("live", environ), flags=flags)
    assert (first.settle_s, second.settle_s) == (3.0, 2.0)
    assert {(target.verify, target.stale, target.watch, target.finish) for target in (first, second)} == {
        ("full", "keep", "events", ("grid",))
    }
    twice = [Setting("finish", rule, "--finish", FLAGS) for rule in ("marker=x", "quiet=1h")]
    assert listed(PAIR + "    finish: now\n", flags=twice)[0].finish == ("marker=x", "quiet=1h")


def test_a_file_that_a_program_wrote(listed):
    pair = {"source": "/acq/caf\u00e9.zarr", "destination": "/mnt/caf\u00e9.zarr", "wait_for_source": True}
    assert listed(json.dumps({"targets": [pair]}, indent=1))[0].source == "/acq/caf\u00e9.zarr"
    assert listed('targets: [{source: "/acq/caf\\xE9.zarr", destination: /b}]')[0].source == "/acq/caf\u00e9.zarr"
    assert listed(codecs.BOM_UTF8 + PAIR.replace("\n", "\r\n").encode())[0].source == "/a"
    assert listed(PAIR.encode("utf-16"))[0].source == "/a"


def test_one_target_may_be_made_of_another(listed):
    text = "targets:\n  - &one {source: /a, destination: /b, settle: 3s}\n  - {<<: *one, destination: /c}\n"
    assert [(target.source, target.destination, target.settle_s) for target in listed(text)] == [
        ("/a", "/b", 3.0), ("/a", "/c", 3.0),
    ]  # fmt: skip


QUOTES = "single quotes"
MISTAKES = {
    "no YAML: a tab": ("targets:\n  - source: /a\n\tdestination: /b\n", 3, "not YAML", "spaces"),
    "no YAML: a tab before the list": ("targets:\n\t- source: /a\n", 2, "not YAML", "spaces"),
    "an escape that is none": ('targets:\n  - source: "D:\\data"\n', 2, "escape character 'd'", QUOTES),
    "an escape that wants digits": ('targets:\n  - source: "D:\\Users"\n', 2, "escape sequence", QUOTES),
    "a quote that was escaped": ('targets:\n  - source: "D:\\"\n    destination: x\n', 2, "end of stream", QUOTES),
    "a new line in a path": ('targets:\n  - source: "D:\\new"\n    destination: x\n', 2, r"D:\new", QUOTES),
    "a return in a path": ('targets:\n  - source: x\n    destination: "D:\\run1"\n', 3, r"D:\run1", QUOTES),
    "a bell in a path": ('targets:\n  - source: "D:\\acq"\n    destination: x\n', 2, r"D:\x07cq", QUOTES),
    "a separator in a path": ('targets:\n  - source: "D:\\Live"\n    destination: x\n', 2, r"D:\u2028ive", QUOTES),
    "a letter in a path": ('targets:\n  - source: "D:\\x41b"\n    destination: x\n', 2, "D:Ab", QUOTES),
    "a control character in a rule": (f'{PAIR}    finish: ["marker=a\\tb"]\n', 4, "a\\tb", QUOTES),
    "a key that stands twice": ("targets:\n  - source: /a\n    source: /b\n", 3, "stands twice, first in line 2", ""),
    "targets twice": (PAIR + "targets: []\n", 4, "targets stands twice", ""),
    "an unknown key of the file": ("target:\n  - source: /a\n", 1, "target is no key", "did you mean targets?"),
    "an unknown key": ("targets:\n  - sorce: /a\n", 2, "sorce is no key of a target", "did you mean source?"),
    "a key with a dash": (PAIR + "    sleep-time: 1\n", 4, "sleep-time is no key", "did you mean sleep_time?"),
    "a key of all": (PAIR + "    workers: 4\n", 4, "workers is no key of a target", ""),
    "a key that is a list": ("? [a]\n: b\n", 1, "a list is no key", "known: targets, defaults"),
    "a key that is itself": ("? &a [*a]\n: b\n", 1, "a list is no key", ""),
    "a default for a source": ("defaults: {source: /a}\n" + PAIR, 1, "source is no setting", ""),
    "a default for a name": ("defaults: {name: a}\n" + PAIR, 1, "name is no setting", ""),
    "defaults that are none": ("defaults: 5\n" + PAIR, 1, "not a mapping but a number", ""),
    "nothing": ("", None, "empty: it needs at least one target", ""),
    "only a comment": ("# targets:\n", None, "empty", ""),
    "a list": ("- source: /a\n", 1, "not a mapping but a list", "targets"),
    "a word": ("hello\n", 1, "not a mapping but 'hello'", "targets"),
    "no targets": ("defaults: {}\n", 1, "it has no targets", ""),
    "an empty list": ("targets: []\n", 1, "the list of targets is empty", ""),
    "nothing for a list": ("targets:\n", 1, "not a list but nothing", ""),
    "a target and no list": ("targets: {source: /a, destination: /b}\n", 1, "not a list but a mapping", "- source:"),
    "a target that is a word": ("targets:\n  - /a\n", 2, "not a mapping but '/a'", ""),
    "no destination": ("targets:\n  - source: /a\n  - destination: /b\n", 2, "a target without destination", ""),
    "no source": (PAIR + "  - destination: /d\n", 4, "a target without source", ""),
    "a number for a source": ("targets:\n  - source: 2026\n    destination: /b\n", 2, "but a number", QUOTES),
    "a date for a name": (PAIR + "    name: 2026-11-20\n", 4, "not a text but a date", QUOTES),
    "nothing for a destination": ("targets:\n  - source: /a\n    destination:\n", 3, "not a text but nothing", ""),
    "an empty source": ("targets:\n  - source: ''\n    destination: /b\n", 2, "source is empty", ""),
    "a list for a source": ("targets:\n  - source: [/a]\n    destination: /b\n", 2, "not a text but a list", ""),
    "a list for a setting": (PAIR + "    settle: [1s]\n", 4, "settle cannot be a list", ""),
    "a mapping for a setting": (PAIR + "    verify: {a: b}\n", 4, "verify cannot be a mapping", ""),
    "nothing for a setting": (PAIR + "    expect:\n", 4, "expect cannot be nothing", ""),
    "no rule": (PAIR + "    finish: []\n", 4, "finish: an empty list", ""),
    "a rule that is none": (PAIR + "    finish: [now,\n      markr=x]\n", 5, "no finish rule: 'markr=x'", "marker"),
    "a rule without its value": (PAIR + "    finish: quiet\n", 4, "finish rule quiet takes a value", ""),
    "a rule with no time": (PAIR + "    finish: quiet=soon\n", 4, "not a duration: 'soon'", ""),
    "a profile that is not there": (PAIR + "    finish: profile=x\n", 4, "no such profile", ""),
    "a wrong word": (PAIR + "    watch: scn\n", 4, "watch: 'scn' is not known", "did you mean scan?"),
    "a wrong time": (PAIR + "    settle: soon\n", 4, "settle: not a duration: 'soon'", ""),
    "a time below zero": (PAIR + "    sleep_time: -1\n", 4, "sleep_time: '-1' is not between 0s and 365d", ""),
    "no number at all": (PAIR + "    sleep_time: .nan\n", 4, "sleep_time: not a duration", ""),
    "neither yes nor no": (PAIR + "    wait_for_source: 5\n", 4, "wait_for_source: neither true nor false", ""),
    "no process": (PAIR + "    writer_pid: 0\n", 4, "writer_pid: 0 is less than 1", ""),
    "all is not of live": (PAIR + "    verify: all\n", 4, "verify: 'all' is none of", ""),
    "an object": ("targets: !!python/object/apply:os.abort []\n", 1, "the list of targets is empty", ""),
    "bytes": ("targets: [{source: !!binary aGk=, destination: /b}]\n", 1, "not a text but 'aGk='", ""),
    "two documents": (PAIR + "---\n" + PAIR, 4, "another document", ""),
    "an anchor that is not there": ("targets: [*one]\n", 1, "undefined alias", ""),
    "a merge of nothing": ("targets: [{<<: 5, source: /a, destination: /b}]\n", 1, "merging", ""),
    "no text": (b"targets:\n  - \x00\n", 2, r"character \x00", ""),
    "not UTF-8": (b"targets:\n  - source: /acq/\xe9\n", 2, "not UTF-8", ""),
    "deep": ("[" * 50_000, None, "not a list of targets", ""),
}  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message", "hint"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_line(listed, tmp_path, text, line, message, hint):
    with pytest.raises(UsageError) as caught:
        listed(text)
    assert str(caught.value).startswith(f"{tmp_path}/targets.yaml" + (f":{line}: " if line else ": "))
    assert message in str(caught.value)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_list_of_targets_may_have_been_a_source(listed, tmp_path):
    for text in (b"\x89HDF\r\n\x1a\n\xff\xfe" * 99, "not: targets\n", "just words\n", b"\0" * 5_000_000):
        with pytest.raises(UsageError) as caught:
            listed(text, only=True)
        assert "a file alone" in caught.value.hint or "known:" in caught.value.hint
    with pytest.raises(UsageError, match=r"nope\.yaml: No such file"):
        read_targets(str(tmp_path / "nope.yaml"))
    with pytest.raises(UsageError, match=r"Is a directory"):
        read_targets(str(tmp_path))


@given(st.one_of(st.text(), st.binary(max_size=200), st.text("-[]{}:,&*#?|>!%@`'\"\\ \n\tab<", max_size=60)))
def test_whatever_stands_in_a_file_is_a_mistake_of_it_or_a_target(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for head in (b"", b"targets: [{source: /a, destination: /b, name: ", b"targets:\n - source: "):
        path.write_bytes(head + raw)
        try:
            targets = read_targets(str(path))
        except UsageError:
            continue
        assert all(isinstance(target, Target) for target in targets)


# -- values ------------------------------------------------------------------------------------------------------------


def test_values_may_be_written_as_on_the_command_line_and_are_held_parsed(tmp_path):
    target = Target(
        tmp_path, "~/b/", settle_s="1m", sleep_time_s="1e-3", patience_s=5, wait_for_source="F", finish="now"
    )
    assert target.source == str(tmp_path)
    assert target.destination == f"{os.environ['HOME']}/b/"
    assert (target.name, target.settle_s, target.settle_given, target.sleep_time_s) == ("b", 60.0, True, 0.001)
    assert (target.patience_s, target.wait_for_source, target.finish) == (5.0, False, ("now",))
    settings = LiveSettings(limit="80MB", workers="8")
    assert (settings.limit, settings.workers) == (80e6, 8)


def test_settle_is_known_to_be_given_whatever_its_value():
    assert not Target("/a", "/b").settle_given
    assert not replace(Target("/a", "/b"), name="x").settle_given
    assert Target("/a", "/b", settle_s=10.0).settle_given
    assert target_of("/a", "/b", [Setting("settle", "10s", "--settle", FLAGS)]).settle_given


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ""}, {"source": None}, {"source": b"/a"}, {"destination": "a\0b"}, {"verify": "all"}, {"finish": ()},
        {"finish": [3]}, {"settle_s": -1}, {"settle_s": float("nan")}, {"settle_s": "1e9d"}, {"writer": "me"},
        {"writer_pid": True}, {"watch": ""}, {"wait_for_source": 1}, {"on_conflict": "keep-both"}, {"stale": "free"},
        {"scan_interval_s": 0}, {"expect": ""}, {"sleep_time_s": None}, {"patience_s": "soon"},
    ],
)  # fmt: skip
def test_a_value_that_means_nothing(wrong):
    with pytest.raises(UsageError) as caught:
        Target(**{"source": "/a", "destination": "/b", **wrong})
    assert caught.value.code == "SF-105"


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": 65}, {"limit": "0"}, {"gentle": "very"}])
def test_a_value_for_all_that_means_nothing(wrong):
    with pytest.raises(UsageError) as caught:
        LiveSettings(**wrong)
    assert caught.value.code == "SF-105"


def test_every_setting_of_a_target_can_stand_in_a_file():
    assert set(SETTINGS) == {
        "finish", "settle", "expect", "writer", "writer_pid", "sleep_time", "wait_for_source", "verify", "on_conflict",
        "stale", "patience", "watch", "scan_interval",
    }  # fmt: skip
    assert all(option(field) == key for key, field in OF_TARGET.items())


# -- side by side ------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Four sources, and a disk; names in tests are relative to both."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c", "d", "disk"):
        (tmp_path / name).mkdir()
    return tmp_path


def pairs(*given, **more):
    return [Target(*pair.split(" > "), **more) for pair in given]


@pytest.mark.parametrize(
    "fine",
    [
        ("a > disk/a",),
        ("a > disk/a", "b > disk/b", "c > disk/ab"),
        ("a > disk/a", "a > disk/b"),
        ("a > b/a", "b > c/b", "c > disk/c"),
        ("a > disk/a", "disk > d/all"),
        ("a > disk/a", "disk/a > d/a"),
        ("a > no/such/folder/yet", "b > no/such/folder/either"),
        ("later > disk/later",),
        ("a > disk/x", "b > disk/x.zarr"),
        ("disk/x.scopeferry > d/records", "a > disk/x"),
    ],
)
def test_what_may_stand_side_by_side(lab, fine):
    targets = pairs(*fine)
    assert check(targets) == tuple(targets)
    assert sorted(path.name for path in lab.iterdir()) == ["a", "b", "c", "d", "disk"]


@pytest.mark.parametrize(
    ("given_", "code", "message"),
    [
        (("a > a",), "SF-104", "the same folder: a"),
        (("a > a/copy",), "SF-103", "the destination lies in the source"),
        (("disk/a > disk",), "SF-103", "the source lies in the destination"),
        (("b > disk/b", "a > ./a/../a/new/copy"), "SF-103", "the destination lies in the source"),
        (("disk/x.scopeferry/stale > disk/x",), "SF-113", "in the record folder"),
        (("a > disk/x", "b > disk/x"), "SF-117", "two targets have one destination"),
        (("a > disk/x", "b > disk/../disk/x/"), "SF-117", "two targets have one destination"),
        (("a > disk/x", "a > disk/x"), "SF-117", "two targets have one destination"),
        (("a > disk/x", "b > disk/x/y"), "SF-117", "disk/x/y in disk/x"),
        (("a > disk/x/y/z", "b > disk/x"), "SF-117", "disk/x/y/z in disk/x"),
        (("a > disk/x", "b > disk/x.scopeferry"), "SF-117", "disk/x.scopeferry in the records of disk/x"),
        (("a > disk/x.scopeferry/a", "b > disk/x"), "SF-117", "in the records of disk/x"),
        (("a > b", "b > a"), "SF-117", "copy in a circle"),
        (("a > b/x", "b > c/x", "c > a/x"), "SF-117", "copy in a circle"),
        (("a > b/x", "b/x > c", "d > disk/d", "c > a/y/z"), "SF-117", "copy in a circle"),
        (("a > disk/x", "disk > a/y"), "SF-117", "copy in a circle"),
        (("a > new/x", "new > a/y"), "SF-117", "copy in a circle"),
    ],
)
def test_what_may_not(lab, given_, code, message):
    with pytest.raises(UsageError) as caught:
        check(pairs(*given_))
    assert (caught.value.code, caught.value.exit_code) == (code, 2)
    assert message in str(caught.value)
    assert sorted(path.name for path in lab.rglob("*")) == ["a", "b", "c", "d", "disk"]


def test_links_hide_nothing(lab):
    (lab / "link").symlink_to("disk")
    (lab / "into").symlink_to("a")
    for given_ in (("a > disk/x", "b > link/x"), ("a > disk/x", "b > link/x/y"), ("a > into/x",), ("into > a",)):
        with pytest.raises(UsageError):
            check(pairs(*given_))


@pytest.mark.parametrize(
    "given_", ['"a > disk/x", "b > bound/x"', '"a > disk/x", "b > bound/x/y"', '"disk > bound/x",']
)
def test_bind_mounts_hide_nothing(lab, given_):
    (lab / "bound").mkdir()
    code = (
        "from scopeferry.jobs.targets import check; from scopeferry.copying.target import Target\n"
        f"try: check([Target(*pair.split(' > ')) for pair in ({given_})])\n"
        "except ValueError: raise\n"
        "except Exception as error: print(error.code)"
    )
    command = ["unshare", "-rm", "sh", "-c", 'mount --bind disk bound && exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("needs user namespaces: run as root, or allow them")
    assert done.stdout.strip() in {"SF-117", "SF-103"}, done.stderr


def test_a_source_that_is_not_there(lab):
    with pytest.raises(UsageError, match="source is not there: later") as caught:
        check(pairs("a > disk/a", "later > disk/b", wait_for_source=False))
    assert caught.value.code == "SF-101"
    with pytest.raises(UsageError, match="source is not there"):
        check(pairs(f"{'x' * 300} > disk/b"))


def test_a_file_at_either_end(lab):
    (lab / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="the source is no folder: file") as caught:
        check(pairs("file > disk/b"))
    assert "scopeferry transfer" in caught.value.hint
    with pytest.raises(UsageError, match="the destination is none: file"):
        check(pairs("a > file"))


def test_a_list_of_chunks_must_be_there(lab):
    (lab / "keys").write_text("0.0\n")
    assert check(pairs("a > disk/a", expect="keys"))
    with pytest.raises(UsageError, match="--expect: dnese is none of auto, dense, sparse, and no file") as caught:
        check(pairs("a > disk/a", expect="dnese"))
    assert caught.value.hint == "did you mean dense?"


def test_one_journal_is_of_one_target(lab):
    settings = LiveSettings(journal="j.sqlite")
    assert check(pairs("a > disk/a"), settings)
    with pytest.raises(UsageError, match="--journal names one place, and there are 2 targets"):
        check(pairs("a > disk/a", "b > disk/b"), settings)
    with pytest.raises(UsageError, match="no target"):
        check([])
