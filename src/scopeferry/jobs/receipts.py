"""Write the receipt of a generation beside the manifest: ``receipt.txt`` and ``receipt.json``, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from scopeferry.copying import record
from scopeferry.copying.manifest import Replacement
from scopeferry.jobs.result import Result

SHOWN = 6  # generations that a receipt lists


def path_in(folder: str, *, there: bool = False) -> str:
    """Where the receipt of a record folder lies; an empty string if it is to be `there` and is not."""
    path = os.path.join(folder, "receipt.txt")
    return path if not there or os.path.exists(path) else ""


def write(result: Result, folder: str, header: Mapping[str, Any]) -> str:
    """Write both; the path of the text. `header` is the first line of the record. Raises OSError."""
    from scopeferry.reports import receipt

    result.receipt = path_in(folder)
    facts = receipt.facts(result.as_dict(), header, _ends(folder))
    for name, content in (("receipt.json", receipt.as_json(facts)), ("receipt.txt", receipt.text(facts))):
        with Replacement(os.path.join(folder, name)) as file:
            file.write(content.encode("utf-8", "backslashreplace"))
    return result.receipt


def _ends(folder: str) -> list[dict[str, Any]]:
    """What the last lines of the newest generations say, each with its file's name."""
    return [{**end, "name": name} for name, end in record.ends(folder, SHOWN)]
