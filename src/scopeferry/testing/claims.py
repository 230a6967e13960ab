"""What a journal and the records of a copy claim, read without the code that wrote them: for tests of crashes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

STAND = frozenset({"copied", "adopted", "checked", "replaced", "repaired"})  # actions after which something stands


def journal_claims(state: Path, scratch: Path) -> dict[str, bytes]:
    """Path -> working digest of what the journals of a state folder say is done.

    They are read from a copy at `scratch`, with their logs, so that a reader mends nothing. A journal whose run was
    killed before its first transaction claims nothing.
    """
    journals = state / "scopeferry/journals"
    shutil.rmtree(scratch, ignore_errors=True)
    if not journals.is_dir():
        return {}
    shutil.copytree(journals, scratch)
    found: dict[str, bytes] = {}
    for path in scratch.glob("*.sqlite"):
        db = sqlite3.connect(path)
        try:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'items'").fetchone() is None:
                continue
            for folder, name, digest in db.execute(
                "SELECT f.path, i.name, i.digest FROM items i JOIN folders f ON f.id = i.folder "
                "WHERE i.state = 0 AND i.digest IS NOT NULL"
            ):
                found[os.fsdecode(folder + name)] = digest
        finally:
            db.close()
    return found


def record_claims(records: Path, algorithm: str = "xxh128") -> dict[str, str]:
    """Path -> digest, as hexadecimal digits, of what the records in this folder say stands at the destination.

    What was set aside stands no more. The torn last line of a run that was killed is left out.
    """
    found: dict[str, str] = {}
    for path in sorted(records.glob("[0-9]*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("action") in STAND and algorithm in entry.get("digest", {}):
                found[entry["path"]] = entry["digest"][algorithm]
            elif entry.get("action") == "set_aside":
                found.pop(entry["path"], None)
    return found
