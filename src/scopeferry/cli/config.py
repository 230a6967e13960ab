"""`config show`."""

from __future__ import annotations

import argparse
import os

from scopeferry.cli.console import Console
from scopeferry.cli.options import Parser
from scopeferry.config import SECTIONS, Configured, files, find, fold
from scopeferry.errors import UsageError


def parser() -> Parser:
    """Its options."""
    made = Parser(
        "config",
        "config show [--origin]",
        "Every setting as a command would use it: defaults < scopeferry.toml (machine, user, project) < .env of the\n"
        "project < SCOPEFERRY_* variables < flags.",
        "scopeferry config show --origin",
    )
    made.add_argument("show", metavar="show", help="print the settings, as a scopeferry.toml would hold them")
    made.add_argument("--origin", action="store_true", help="say where each value came from")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout")
    made.verbosity()
    return made


def run(args: argparse.Namespace, console: Console) -> int:
    """Show them."""
    if args.show != "show":
        raise UsageError(f"scopeferry config does not know {args.show!r}", hint="scopeferry config show --origin")
    found = {section: fold(section, find(section, os.environ)) for section in SECTIONS}
    if args.json:
        from scopeferry.cli.face import dumps
        from scopeferry.jobs.result import Result

        result = Result("config")
        result.details["settings"] = {
            section: {key: {"value": _plain(value), "origin": origin} for key, value, origin in _entries(section, held)}
            for section, held in found.items()
        }
        result.details["files"] = files(os.environ)
        console.data(dumps(result.as_dict()))
        return 0
    for section, held in found.items():
        console.data(f"[{section}]")
        for key, value, origin in _entries(section, held):
            text = f"{key} = {_toml(value)}" if value is not None else f"# {key} ="
            console.data(f"{text:<40}  # {origin}" if args.origin else text)
    if args.origin:
        for path in files(os.environ):
            console.data(f"# {path}: {'read' if os.path.exists(path) else 'not there'}")
    return 0


def _entries(section: str, held: Configured) -> list[tuple[str, object, str]]:
    """(key, value, where it came from) of all settings; include and exclude stay apart."""
    entries: list[tuple[str, object, str]] = []
    for key in SECTIONS[section]:
        if key in {"include", "exclude"}:
            globs = [glob for kind, glob in held.get("select") if kind == key]
            entries.append((key, globs, held.place("select") if globs else "default"))
        elif key != "no-keep":
            entries.append((key, held.get(key), held.place(key)))
    return entries


def _plain(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _toml(value: object) -> str:
    import json

    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    return json.dumps(_plain(value) if not isinstance(value, tuple) else list(value), ensure_ascii=False)
