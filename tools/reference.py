"""Write the reference pages that come from the program itself: commands, settings, problem codes.

    python tools/reference.py            writes docs/reference/*.md anew
    python tools/reference.py --check    1 if a page does not say what the program does

Commands and options are read from the parsers, settings from ``scopeferry.config``, codes from ``scopeferry.errors``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scopeferry.cli import options
from scopeferry.cli.main import COMMANDS
from scopeferry.config import (
    CONFLICT,
    EXECUTORS,
    EXPECT,
    GENTLE,
    KEEP,
    NAMES,
    SECTIONS,
    STALE,
    WATCH,
    WRITERS,
    Configured,
    variables,
)
from scopeferry.errors import CODES
from scopeferry.kernel.digest import ALGORITHMS, check_names

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).resolve().parent.parent / "docs/reference"
GENERATED = "<!-- Written by tools/reference.py from the program itself: do not edit. -->"
COMMON = ("--interval", "--json", "--events", "--quiet", "--verbose")

EXITS = {
    2: "Wrong usage or configuration (exit 2)",
    1: "The run as a whole failed (exit 1)",
    3: "One item failed, the others went on (exit 3)",
    4: "Differences that `verify` found (exit 4)",
    5: "Refused by a safety rule (exit 5)",
    6: "The source is not finished (exit 6)",
    7: "No space (exit 7)",
    75: "Temporary: try again (exit 75)",
    130: "Interrupted (exit 130)",
    0: "Notes: said, and change nothing",
}


def commands_page() -> Iterator[str]:
    """A section a command: what it does, what it takes, an example."""
    yield from ("# Commands", "", GENERATED, "")
    yield from COMMANDS_HEAD.strip().splitlines()
    parsers = {name: importlib.import_module(f"scopeferry.cli.{COMMANDS[name][0]}").parser() for name in there()}
    for name, parser in parsers.items():
        yield from _command(name, parser)
    yield from ("", "## Common options", "")
    yield "Of every command that runs a job:"
    yield ""
    yield from _table(filter(_is_common, parsers["transfer"]._actions))  # noqa: SLF001


COMMANDS_HEAD = """
`scopeferry COMMAND --help` prints the same. Sizes: MB is 10^6 bytes, MiB 2^20. Times: `500ms 10s 5m 2h 30d`.
What a command ends with: [exit codes](exit-codes.md), [problem codes](problem-codes.md). The options of `transfer` and
`live` can stand in a file or a variable too: [settings](settings.md).
"""


def there() -> list[str]:
    """The commands of this version."""
    return list(COMMANDS)


def _command(name: str, parser: options.Parser) -> Iterator[str]:
    actions = [action for action in parser._actions if action.dest != "help"]  # noqa: SLF001
    own = [action for action in actions if not _is_common(action)]
    yield from ("", f"## {name}", "", "```text", str(parser.usage), "```", "")
    yield str(parser.description)
    yield ""
    yield from _table(own)
    if len(own) < len(actions):
        names = ", ".join(f"`{action.option_strings[0]}`" for action in actions if _is_common(action))
        yield from ("", f"And of the [common options](#common-options): {names}.")
    example = str(parser.epilog).partition("$ ")[2]
    yield from ("", "Example:", "", "```text", f"$ {example}", "```")


def _is_common(action: argparse.Action) -> bool:
    return not set(COMMON).isdisjoint(action.option_strings)


def _table(actions: Any) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for action in actions:
        words = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or action.dest.upper()}"
        if action.nargs == "?":
            value = f" [{value.strip()}]" if value else ""
            words = words if action.option_strings else f"[{words}]"
        yield f"| `{words}{value}` | {_cell((action.help or '').replace('%%', '%'))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


VALUES_OF = {
    "live": {
        "verify": "`full`, `sample:P%`, `none`",
        "nprocs": "1 and more",
        "sleep-time": "a time",
        "wait-for-source": "`true`, `false`, and their like",
        "settle": "a time",
        "expect": " ".join(f"`{name}`" for name in EXPECT) + ", a file",
        "writer": " ".join(f"`{name}`" for name in WRITERS),
        "writer-pid": "a process",
        "watch": " ".join(f"`{name}`" for name in WATCH),
        "scan-interval": "a time, 10 ms to 1 h",
        "gentle": " ".join(f"`{name}`" for name in GENTLE),
        "on-conflict": " ".join(f"`{name}`" for name in CONFLICT[:2]),
        "stale": " ".join(f"`{name}`" for name in STALE),
    },
}
VALUES = {
    "verify": "`full`, `all`, `sample:P%`, `none`",
    "digest": " ".join(f"`{name}`" for name in ALGORITHMS),
    "workers": "1 to 64",
    "executor": " ".join(f"`{name}`" for name in EXECUTORS),
    "on-conflict": " ".join(f"`{name}`" for name in CONFLICT),
    "names": " ".join(f"`{name}`" for name in NAMES),
    "keep": " ".join(f"`{name}`" for name in KEEP),
    "no-keep": "as `keep`",
    "include": "globs",
    "exclude": "globs",
    "limit": "bytes a second: `50MB`, `1GiB`",
    "patience": "a time: `500ms 10s 5m 2h 30d`",
    "interval": "a time",
    "finish": "rules",
    "wait": "a time",
    "journal": "a file",
    "records": "a folder",
    "strict": "`true`, `false`",
    "parents": "`true`, `false`",
}


def settings_page() -> Iterator[str]:
    """Every setting: where it can stand, what it may be, what it is if nobody says anything."""
    yield from ("# Settings", "", GENERATED, "")
    yield from SETTINGS_HEAD.strip().splitlines()
    by_key = {place: name for name, place in variables().items()}
    for section, keys in SECTIONS.items():
        yield from (
            "",
            f"## [{section}]",
            "",
            "| key | meaning | values | default | variable |",
            "|---|---|---|---|---|",
        )
        for key in keys:
            meant = options.meaning(section, key)[1].replace("%%", "%")
            values = VALUES_OF.get(section, {}).get(key) or VALUES[key]
            cells = (f"`{key}`", meant, values, _default(section, key), f"`{by_key[section, key]}`")
            yield f"| {' | '.join(map(_cell, cells))} |"


SETTINGS_HEAD = """
Each setting has one name everywhere: `on-conflict = "replace"` in a file, `--on-conflict replace` on the command line,
`SCOPEFERRY_TRANSFER_ON_CONFLICT=replace` in the environment. What stands further down in this list wins:

1. defaults
2. `scopeferry.toml` of the machine: `/etc/scopeferry/`; on Windows `%PROGRAMDATA%\\scopeferry\\`
3. `scopeferry.toml` of the user: `~/.config/scopeferry/`; on Windows `%APPDATA%\\scopeferry\\`
4. `scopeferry.toml` in the folder where the command is given
5. `.env` in that folder
6. variables `SCOPEFERRY_*`
7. flags

`include`, `exclude`, `keep` and `no-keep` add to what was said before; the others replace it. A misspelt key is an
error that names the file, the line and the nearest valid key. Secrets do not belong here.

```toml
[transfer]
digest = ["xxh128", "sha256"]
limit = "50MB"
exclude = ["*.tmp", "previews/"]
```

`scopeferry config show --origin` prints every setting and where its value came from.
"""


def _default(section: str, key: str) -> str:
    value = Configured({}, {}, section).get("select" if key in {"include", "exclude"} else key)
    if key == "digest":
        value = value or check_names(())
    if key == "no-keep":
        return ""
    if value is None:
        return ""
    if isinstance(value, frozenset):
        value = [name for name in KEEP if name in value]
    if isinstance(value, list | tuple):
        return " ".join(f"`{name}`" for name in value) or "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{str(value).lower()}`"


def codes_page() -> Iterator[str]:
    """An entry a code."""
    yield from ("# Problem codes", "", GENERATED, "")
    yield "Every problem has a code that never changes its meaning. With `--json` it is `problems[].code`; the record"
    yield "holds it as `problem.code`. A message names the thing, and the next step is printed behind `next:`."
    yield "When several things went wrong, the most serious decides the [exit code](exit-codes.md)."
    for number, title in EXITS.items():
        found = {code: entry for code, entry in CODES.items() if entry[0] == number}
        if not found:
            continue
        yield from ("", f"## {title}", "", "| code | meaning | what to do next |", "|---|---|---|")
        for code, (_, meaning, hint) in found.items():
            yield f'| <a id="{code.lower()}"></a>`{code}` | {_cell(meaning)} | {_cell(hint)} |'


PAGES = {"commands.md": commands_page, "settings.md": settings_page, "problem-codes.md": codes_page}


def stale() -> list[str]:
    """The pages that do not say what the program does."""
    return [name for name, page in PAGES.items() if not _is_fresh(FOLDER / name, _text(page()))]


def _text(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def _is_fresh(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


def main() -> int:
    """Write the pages, or with ``--check`` say which are stale."""
    if "--check" in sys.argv[1:]:
        found = stale()
        print("\n".join(f"docs/reference/{name} is stale: run python tools/reference.py" for name in found) or "fresh")
        return 1 if found else 0
    for name, page in PAGES.items():
        (FOLDER / name).write_text(_text(page()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
