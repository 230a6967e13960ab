"""Set aside what the source has dropped: a copy of ours moves into the record folder, and nothing is freed.

Readers of a growing copy then see what readers of its source see (``live.md`` 3.3). Idempotent: where nothing of ours
stands any more there is nothing to do. Whatever file bears the name is moved, also one that somebody has changed.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass

from scopeferry.copying.order import Order
from scopeferry.errors import Refused, ScopeferryError
from scopeferry.kernel.journal import Row
from scopeferry.kernel.publish import Folders, system
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable


@dataclass(frozen=True, slots=True)
class Aside:
    """Where in the record folder it lies; empty if nothing stood there. Had somebody `changed` our copy?"""

    where: str
    changed: bool


@dataclass(frozen=True, slots=True)
class AsideItem:
    """One copy whose source is gone. ``below`` is the folder of the record folder that receives it."""

    order: Order
    key: str
    row: Row
    below: str

    @property
    def revision(self) -> str:
        """What is to be set aside."""
        return f"aside:{self.row.stored}"

    @property
    def size(self) -> int:
        """A rename is no bytes of work."""
        return 0

    @staticmethod
    def run_batch(tasks: Sequence[AsideItem], control: Control) -> list[Outcome | Failure]:
        """Set them aside; one answer for each."""
        order = tasks[0].order
        answers: list[Outcome | Failure] = []
        try:
            order.store.check_present(control)
            with Folders(order.store.root) as there:
                for task in tasks:
                    try:
                        control.check()
                        answers.append(Outcome(task.key, task.row.size, payload=_move(task, there)))
                    except OSError as error:
                        answers.append(Failure.of(task.key, order.store.translated(error, task.key)))
                    except ScopeferryError as error:
                        answers.append(Failure.of(task.key, error))
        except (OSError, ScopeferryError) as error:
            item = order.store.translated(error, order.store.root) if isinstance(error, OSError) else error
            answers += [Failure.of(task.key, item) for task in tasks[len(answers) :]]
        return answers


def _move(task: AsideItem, there: Folders) -> Aside:
    from scopeferry.stores.files import set_aside

    order = task.order
    stored = task.key if order.names is None else str(order.names.full(task.key))
    head, _, name = stored.rpartition("/")
    try:
        folder = there.open(head)
        found = system.lstat(folder, name)
    except FileNotFoundError:
        return Aside("", changed=False)
    if not stat.S_ISREG(found.st_mode):
        message = f"gone at the source, and something of another kind stands in the copy: {printable(task.key)}"
        raise Refused(message, code="SF-502", path=task.key)
    where = set_aside(folder, name, order.store.records, task.below, stored)
    system.unlink(folder, name)
    system.flush_folder(folder)
    return Aside(where, changed=(found.st_size, found.st_mtime_ns) != (task.row.size, task.row.noted_mtime_ns))
