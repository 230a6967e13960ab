"""Generations of a record that cannot be appended to where they belong.

A mount in user space (FUSE) may send a file only when it is closed, and take it only from its first byte to its last:
lines that are flushed there need not be anywhere when the mount is gone. So there a generation is written in the state
folder, on a local disk, and sent whole when it has ended; what a killed run left there is sent by the next one.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from scopeferry.copying import place
from scopeferry.copying.manifest import Replacement
from scopeferry.kernel import publish
from scopeferry.kernel.digest import SEAL, seal


def folder_for(records: str) -> str:
    """Where the generations of this record folder are written first; an empty string: there itself."""
    return place_of(records) if publish.disk(records).reopens else ""


def place_of(records: str) -> str:
    """The folder in the state folder that belongs to a record folder."""
    return os.path.join(place.state_folder(), "underway", place.destination_name(records))


def send(records: str, names: list[str]) -> list[str]:
    """Send generations, oldest first, each whole or not at all; the paths that they have now. Raises OSError."""
    first, sent = place_of(records), []
    for name in names:
        path = os.path.join(first, name)
        with open(path, "rb") as file:
            data = file.read()
        target = os.path.join(records, name)
        if not _is_there(target, data):
            if os.path.exists(target):
                target, data = _after_others(records, data)
            with Replacement(target) as file:
                file.write(data)
        os.unlink(path)
        sent.append(target)
    with suppress(OSError):
        os.rmdir(first)
    return sent


def _is_there(target: str, data: bytes) -> bool:
    """Was it sent, by a run that was killed right then?"""
    try:
        with open(target, "rb") as file:
            return file.read() == data
    except FileNotFoundError:
        return False


def _after_others(records: str, data: bytes) -> tuple[str, bytes]:
    """Where a generation goes whose number another machine has taken meanwhile, and how it goes on from there."""
    stems = [name[:-6] for name in os.listdir(records) if name.endswith(".jsonl") and name[:-6].isdigit()]
    last = max(map(int, stems))
    before = f"{last:04}.jsonl"
    with open(os.path.join(records, before), "rb") as file:
        previous = {"name": before, SEAL: seal(file)}
    head, _, rest = data.partition(b"\n")
    facts = {**json.loads(head), "generation": last + 1, "previous": previous}
    return os.path.join(records, f"{last + 1:04}.jsonl"), json.dumps(facts).encode() + b"\n" + rest
