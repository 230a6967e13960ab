"""Every wrong word is exit 2 and one line: what is wrong, its code, and the next step. Nothing is made."""

import json

import pytest

from scopeferry.cli.main import COMMANDS

COPY = ["transfer", "run7", "out"]
SEE = "see --help for the values"
CASES = [
    ([], "no command was named (SF-100)", "scopeferry --help"),
    (["transfr", "a", "b"], "scopeferry has no command 'transfr' (SF-100)", "did you mean scopeferry transfer?"),
    (["frobnicate"], "scopeferry has no command 'frobnicate' (SF-100)", "scopeferry --help lists the commands"),
    (["--verison"], "scopeferry has no option --verison (SF-100)", "scopeferry --help"),
    (["transfer", "run7"], "scopeferry transfer needs DST (SF-100)", "scopeferry transfer SRC DST [options], or "),
    ([*COPY, "more"], "scopeferry transfer does not take 'more' (SF-100)", "scopeferry "),
    ([*COPY, "--wrkers", "3"], "scopeferry transfer has no option --wrkers (SF-100)", "did you mean --workers?"),
    ([*COPY, "--work", "3"], "scopeferry transfer has no option --work (SF-100)", "did you mean --workers?"),
    ([*COPY, "--limit"], "--limit needs a value (SF-105)", "scopeferry transfer --help"),
    ([*COPY, "--json=yes"], "--json takes no value: 'yes' (SF-105)", "scopeferry transfer --help"),
    ([*COPY, "--workers", "x"], "--workers: not a whole number: 'x' (SF-105)", SEE),
    ([*COPY, "--workers", "0"], "--workers: 0 is not between 1 and 64 (SF-105)", SEE),
    ([*COPY, "--limit", "fast"], "--limit: not a size: 'fast' (50MB, 1GiB) (SF-105)", SEE),
    ([*COPY, "--limit", "0"], "--limit: '0' is not a positive number of bytes a second", SEE),
    ([*COPY, "--patience", "5q"], "--patience: not a duration: '5q'", SEE),
    ([*COPY, "--verify", "most"], "--verify: 'most' is none of full, all, none, sample:P%", SEE),
    ([*COPY, "--verify", "sample:0%"], "--verify: 'sample:0%' is none of full,", SEE),
    ([*COPY, "--digest", "sha257"], "unknown digest 'sha257' (SF-106)", "did you mean sha256?"),
    ([*COPY, "--on-conflict", "replce"], "--on-conflict: 'replce' is not known (SF-105)", "did you mean replace?"),
    ([*COPY, "--executor", "dask"], "--executor: 'dask' is not known (SF-105)", "one of threads"),
    ([*COPY, "--names", "zzz"], "--names: 'zzz' is not known (SF-105)", "one of refuse, percent"),
    ([*COPY, "--keep", "ownr"], "--keep: 'ownr' is not known (SF-105)", "did you mean owner?"),
    (["transfer", "nowhere", "out"], "source is not there: nowhere (SF-101)", "check the path; is the disk"),
    (["transfer", "run7", "no/out"], "the parent folder of the destination is not there:", "make it, or add --parents"),
    (["transfer", "run7", "run7/out"], "the destination lies in the source:", "choose a destination outside"),
    (["transfer", "run7", "run7"], "source and destination are the same", "choose another destination"),
    (["verify", "run7", "--sample", "x"], "--sample: not a share: 'x' (5%; more than 0", SEE),
    (["verify", "run7", "--adopt"], "--adopt needs the source to compare with", "scopeferry verify run7 SRC --adopt"),
    (["verify", "run7"], "no manifest", "scopeferry verify"),
    (["verify", "nowhere"], "", ""),
    (["status", "20200101"], "no run 20200101 (SF-115)", "scopeferry status lists the runs"),
    (["config", "shw"], "scopeferry config does not know 'shw' (SF-100)", "scopeferry config show --origin"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message", "step"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line(ferry, tree, tmp_path, words, message, step):
    before = sorted(tmp_path.rglob("*"))
    done = ferry(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"exit 2: {message}")
    assert f"   next: {step}" in done.stderr
    assert "(SF-1" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_with_json_the_envelope_comes_too(ferry, tree):
    done = ferry("transfer", tree, "no/out", "--json")
    told = json.loads(done.stdout)
    assert (told["ok"], told["exit_code"], told["command"], told["source"]) == (False, 2, "transfer", str(tree))
    assert told["problems"][0]["code"] == "SF-102"
    assert ferry("transfer", "--json").stdout.count("\n") == 1


SHOWN = {(name, "--finish") for name in ("clean", "live", "inspect", "transfer")} | {("transfer", "--wait")}


def test_help_shows_what_is_there_and_an_example(ferry):
    overview = ferry("--help").stdout
    for command in COMMANDS:
        assert f"scopeferry {command} " in overview
    for word in ("extract", "fetch", "report", "dashboard", "doctor"):
        assert f"scopeferry {word}" not in overview
    for command in COMMANDS:
        text = ferry(command, "--help").stdout
        assert f"\nexample:\n  $ scopeferry {command}" in text
        for later in ("--finish", "--wait", "--report", "--slice", "--join", "--profile"):
            assert f"{later} " not in text or (command, later) in SHOWN


def test_a_rule_is_never_left_unheard(ferry, tree, tmp_path):
    for words, code, message in (
        (("--finish", "markr=x"), 2, "no finish rule: 'markr=x'"),
        (("--finish", "profile=x"), 2, "no such profile"),
        (("--wait", "5s"), 2, "--wait waits for what --finish names"),
        (("--finish", "marker=done"), 6, "to end: file 'done'"),
        (("--finish", "marker=done", "--wait", "100ms"), 6, "to end: file 'done'"),
        (("--finish", "marker=done", "--dry-run"), 6, "to end: file 'done'"),
    ):
        done = ferry("transfer", tree, "copy", *words)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
        assert not list(tmp_path.glob("copy*"))
    (tree / "done").touch()
    assert ferry("transfer", tree, "copy", "--finish", "marker=done").returncode == 0


def test_a_name_that_looks_like_an_option(ferry, tree, tmp_path):
    tree.rename(tmp_path / "--help")
    assert ferry("transfer", "--", "--help", "-copy").returncode == 0
    assert (tmp_path / "-copy/pos0/0000.tif").exists()


def test_the_order_of_include_and_exclude_counts(ferry, tree, tmp_path):
    ferry("transfer", tree, "one", "--exclude", "**/*.tif", "--include", "pos0/*")
    ferry("transfer", tree, "two", "--include", "pos0/*", "--exclude", "**/*.tif")
    assert sorted(path.name for path in (tmp_path / "one").rglob("*.tif")) == ["0000.tif", "0003.tif"]
    assert not list((tmp_path / "two").rglob("*.tif"))


def test_version(ferry):
    from scopeferry import __version__

    assert ferry("--version").stdout == f"scopeferry {__version__}\n"


def test_what_a_rerun_imports(ferry, tree):
    """Start-up counts: nothing that only a copy needs, nor TOML where there is no file."""
    ferry("transfer", tree, "copy")
    code = "import sys; from scopeferry.cli import main; main(); print(*sys.modules)"
    done = ferry.raw([*ferry.command()[:1], "-c", code, "transfer", tree, "copy"])
    loaded = set(done.stdout.split())
    assert done.stderr.startswith("exit 0: nothing to do")
    for heavy in ("tomllib", "difflib", "tempfile", "hashlib", "shlex", "numpy", "scopeferry.reports.receipt"):
        assert heavy not in loaded, heavy
