"""The command line: parse, build, call, render. One thin module per command."""

from __future__ import annotations

from scopeferry.cli.main import main

__all__ = ["main"]
