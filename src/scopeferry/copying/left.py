"""What a listing found and the copy does not take up: written into the record once, not at each run.

A FIFO, a link where links are not kept, a folder that cannot be listed, a name that the destination cannot hold, other
content that stands there: none of these becomes a task, so no ledger writes its line. The journal notes what was said
of an item, until something else becomes of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from scopeferry.copying.record import Record, action_after
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import PAGE, Journal

SAID = "said"  # the detail of an item: the code of what the record says of it
APART = "apart"  # the same of a hard link that is copied all the same, as a file


@dataclass(slots=True)
class LeftOut:
    """Tell it what a listing has to say; `flush` writes what is news."""

    journal: Journal
    record: Record
    _news: list[tuple[str, tuple[bytes, bytes, str]]] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Take note of a ``failed`` or ``note`` event of a listing; what concerns no single item is passed over."""
        data = event.data
        head, slash, name = os.fsencode(event.path).rpartition(b"/")
        folder, code = head + slash, data.get("code", "")
        key = APART if data.get("kind") == "hardlink" else SAID
        if "kind" not in data or self.journal.detail(folder, name, key) == code:
            return
        lost = [data["lost"]] if "lost" in data else None
        action = None if key == APART else action_after(code)
        self.record.entry(
            event.path, data["kind"], action, lost=lost, problem={"code": code, "message": data["message"]}
        )
        self._news.append((key, (folder, name, code)))
        if len(self._news) >= PAGE:
            self.flush()

    def flush(self) -> None:
        """The record first, then the journal."""
        if self._news:
            self.record.flush()
            for key in (SAID, APART):
                self.journal.note(key, [news for one, news in self._news if one == key])
            self._news = []
