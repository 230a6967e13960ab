"""`verify DST SRC --adopt`: a copy that another tool made gets a record, a manifest and a journal, if it equals its
source.

It is `transfer` with a store that publishes nothing: what is equal on both sides is adopted, its times and modes are
set as `transfer` sets them, and what would have to be sent is named instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from scopeferry.config import TransferSettings
from scopeferry.copying.order import Order
from scopeferry.copying.plan import Plan
from scopeferry.errors import ItemError, UsageError
from scopeferry.jobs.transfer import TransferJob
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal
from scopeferry.kernel.publish import Folders, Mark
from scopeferry.kernel.task import Control, Failure
from scopeferry.logs import printable
from scopeferry.stores.local import LocalStore
from scopeferry.stores.store import Entry, Prove, Upload


@dataclass(frozen=True, slots=True)
class Untouched(LocalStore):
    """A store that publishes nothing: each upload is a difference."""

    def put(self, uploads: Sequence[Upload], *, prove: Prove, control: Control) -> list[Entry | Failure]:
        """Say of each what is wrong with the copy."""
        del prove, control
        return [_difference(upload) for upload in uploads]

    def link(self, folders: Folders, leader: str, key: str, expected: Mark | None) -> Mark:
        """A hard link that stands is taken as it is; one that is not there is missing."""
        del folders, expected
        mark, first = self.entry(key), self.entry(leader)
        if mark is None:
            raise ItemError(f"missing in the copy: {printable(key)}", code="SF-402", path=key)
        if first is None or mark != first:
            raise ItemError(f"no hard link of the same file in the copy: {printable(key)}", code="SF-408", path=key)
        return mark


def _difference(upload: Upload) -> Failure:
    shown = printable(upload.key)
    if upload.expected is None:
        return Failure(upload.key, "SF-402", f"missing in the copy: {shown}")
    return Failure(upload.key, "SF-408", f"source and copy differ: {shown}")


class AdoptJob(TransferJob):
    """One run of `verify --adopt`. Iterate over `run`; then `result` holds what became of it."""

    def __init__(self, src: str, dst: str, settings: Any, control: Control | None = None) -> None:
        if not os.path.exists(dst):
            raise UsageError(f"the copy is not there: {printable(dst)}", code="SF-101", path=dst)
        chosen = TransferSettings(
            verify="all", records=settings.records, journal=settings.journal, workers=settings.workers
        )
        if settings.digest:
            chosen = replace(chosen, digest=tuple(settings.digest))
        super().__init__(src, dst, chosen, control)
        self.result.command = "verify"
        self.checks = settings

    def _order(self, journal: Journal) -> Order:
        order = super()._order(journal)
        store = order.store
        return replace(order, store=Untouched(**{field.name: getattr(store, field.name) for field in fields(store)}))

    def _header(self) -> dict[str, Any]:
        return {**super()._header(), "job": "adopt"}  # it is a copy, whatever the command's name

    def _plan(self, journal: Journal, order: Order, *, again: bool, read_only: bool = False) -> Plan:
        return replace(super()._plan(journal, order, again=again, read_only=read_only), relinks=False)

    def _check_room(self, plan: Plan) -> None:
        """Nothing is written, so everything fits."""

    def _count(self, event: Event) -> None:
        if event.kind == "failed" and event.data["code"] == "SF-501":  # a difference here, not a refusal
            event.data.update(code="SF-408", message=f"source and copy differ: {printable(event.path)}", hint="")
        super()._count(event)

    def run(self) -> Iterator[Event | None]:
        """Adopt what is equal; yields events, and None as a tick."""
        yield from super().run()
        result = self.result
        known = f", {result.checked:,} as they were recorded" if result.checked else ""
        result.checked += result.adopted
        if self.checks.strict and result.extras:
            result.add("SF-405", self.dst, f"{result.extras:,} files of the copy are not at the source")
        result.details["verdict"] = (
            f"adopted {result.adopted:,} of {result.items:,} files and links{known}: both sides were read and are equal"
        )


__all__ = ["AdoptJob"]
