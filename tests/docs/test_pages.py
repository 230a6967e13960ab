"""Every page does what it says: its blocks are run, its links lead somewhere, the names it uses exist."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scopeferry.cli.main import COMMANDS
from scopeferry.config import SECTIONS, find
from scopeferry.errors import CODES
from scopeferry.jobs.targets_file import read_targets

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN, NOT_RUN = {"console", "python"}, {"sh", "bash", "bat", "powershell"}
SHOWN = {"text", "json", "toml", "yaml", "setup"}
OTHER_PROGRAMS = ("xxhsum", "sha256sum", "b3sum", "rsync", "make", "git", "rclone", "cp", "uv", "robocopy", "python")

every_page = pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])


@every_page
def test_what_a_page_shows_is_what_happens(page, play):
    play(page)


#: What the project has promised that a user can type and write, whatever pages say otherwise.
FIRST_LINES = (
    "scopeferry transfer /acq/run7 /mnt/archive/run7",
    "scopeferry transfer /acq/run7 /mnt/archive/run7",
    "scopeferry transfer /acq/run7 /mnt/archive/run7 --digest xxh128 --digest sha256 --digest md5 --limit 50MB",
    "scopeferry verify /mnt/archive/run7",
    "scopeferry verify /mnt/archive/run7 /acq/run7",
    "scopeferry repair /acq/run7 /mnt/archive/run7",
    "scopeferry clean /acq/run7 --copy /mnt/archive/run7 --copy /mnt/tape/run7 --older-than 30d",
    "cd /mnt/archive/run7 && xxhsum -c ../run7.scopeferry/manifest.xxh128",
)
FIRST_PYTHON = (
    "from scopeferry import clean, repair, transfer, verify",
    'result = transfer("/acq/run7", "/mnt/archive/run7", digests=["xxh128", "sha256"], on_event=print)',
    "result.exit_code, result.copied, result.verified, result.tree_digest",
    'for problem in verify("/mnt/archive/run7", "/acq/run7").problems:',
    "    print(problem.code, problem.path, problem.message, problem.hint)",
)


def test_the_lines_that_were_promised_stand_on_the_first_page_and_run(read, typed):
    page = ROOT / "docs/index.md"
    assert tuple(typed(page)) == FIRST_LINES
    source = "".join(block.body for block in read(page) if block.language == "python" and not block.skipped)
    assert tuple(line.partition("  #")[0].rstrip() for line in source.splitlines()) == FIRST_PYTHON


FREED = """
...
exit 0: done   freed 25 of 25 files and links...
$ find /acq/run7 -type f | wc -l
0
"""


def test_the_promised_lines_copy_verify_repair_and_free(play, tmp_path):
    lines = "".join(f"$ {line}\n" for line in (*FIRST_LINES, f"{FIRST_LINES[-2]} --yes"))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- setup\nscopeferry transfer /acq/run7 /mnt/tape/run7\n-->\n```console\n{lines}{FREED}```\n")
    play(page)


@every_page
def test_a_block_is_run_or_says_why_not(page, read):
    for block in read(page):
        assert block.language in RUN | NOT_RUN | SHOWN, f"{page}:{block.line}: a block of {block.language or 'nothing'}"
        if block.language in NOT_RUN:
            assert block.skipped, f"{page}:{block.line}: say why it is not run: <!-- not run: REASON -->"


@every_page
def test_settings_and_json_that_a_page_shows_are_understood(page, read, tmp_path):
    for block in read(page):
        if block.language == "toml" and not block.skipped:
            (tmp_path / "scopeferry.toml").write_text(block.body)
            environ = {"XDG_CONFIG_HOME": str(tmp_path)}
            assert [setting for section in SECTIONS for setting in find(section, environ, str(tmp_path))]
        elif block.language == "yaml":
            (tmp_path / "targets.yaml").write_text(block.body)
            assert read_targets(str(tmp_path / "targets.yaml"))
        elif block.language == "json":
            for line in block.body.splitlines():
                json.loads(line)


@every_page
def test_options_and_codes_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    unknown = set(re.findall(r"SF-\d+", text)) - set(CODES)
    assert not unknown
    options = {option for name in COMMANDS for option in options_of(name)} | {"--version", "--help"}
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        if not span.startswith(OTHER_PROGRAMS):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", span)) <= options, f"{page}: {span}"


@every_page
def test_modules_and_functions_that_a_page_names_exist(page):
    text = page.read_text("utf-8")
    for path in re.findall(r"`(?:src/scopeferry/)?([\w/]+\.py)`", text):
        assert any((root / path).exists() for root in (ROOT / "src/scopeferry", ROOT)), f"{page}: {path}"
    for path, names in re.findall(r"`([\w/]+)\.py`: ((?:`[\w.]+`(?:, | and )?)+)", text):
        module = importlib.import_module(f"scopeferry.{path.replace('/', '.')}")
        for name in re.findall(r"`([\w.]+)`", names):
            assert_there(module, name, page)


def assert_there(module, name, page):
    at = module
    for part in name.split("."):
        assert hasattr(at, part), f"{page}: {module.__name__} has no {name}"
        at = getattr(at, part)


def options_of(command: str) -> set[str]:
    parser = importlib.import_module(f"scopeferry.cli.{COMMANDS[command][0]}").parser()
    return {option for action in parser._actions for option in action.option_strings}


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        target, _, anchor = link.partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            pytest.fail(f"{page}: {link}: pages are read offline")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page}: {link}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page}: {link}"


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    made = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
    return made | set(re.findall(r'id="([^"]+)"', text))


def test_every_page_is_reached_from_the_first():
    seen, ahead = set(), [ROOT / "docs/index.md"]
    while ahead:
        page = ahead.pop()
        if page not in seen:
            seen.add(page)
            links = re.findall(r"\]\(([^)\s#]+\.md)[^)]*\)", page.read_text("utf-8"))
            ahead.extend((page.parent / link).resolve() for link in links)
    assert set(PAGES) - {ROOT / "README.md"} <= seen


def test_the_first_screen_of_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 40


def test_the_site_builds_strict_and_needs_no_network(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs: make setup")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    build = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        loads = re.findall(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"(\w+:)?//[^\"]*\"", page.read_text("utf-8"))
        assert not loads, f"{page.relative_to(tmp_path)} loads something from the network"
