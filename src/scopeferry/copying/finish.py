"""What is set right when all files are there: folders, and the rows of hard links."""

from __future__ import annotations

from dataclasses import replace

from scopeferry.copying.order import Order, stored_path
from scopeferry.errors import ScopeferryError
from scopeferry.kernel import journal as states
from scopeferry.kernel.journal import Journal, fingerprint
from scopeferry.kernel.publish import Folders, system
from scopeferry.stores.files import apply_attributes, lost_times
from scopeferry.stores.store import Attributes


def set_folder(
    order: Order, here: Folders, there: Folders, path: str, stored: str, given: frozenset[str]
) -> tuple[Attributes, list[str]]:
    """Give a folder of the copy what its source has, making it if need be: that, and the kinds that were lost.

    Of the extended attributes that it was `given`, those that its source has lost go; those of others stay.
    """
    folder = here.open(path)
    facts = system.folder_stat(folder)
    wanted = order.source.attributes(facts, order.source.kept_xattrs(folder))
    if order.source.keep & system.ATTRIBUTES:
        wanted = replace(wanted, dropped=given - wanted.xattrs.keys())
    copy = there.open(stored, make=True)
    lost = apply_attributes(copy, wanted)
    found = lost_times(system.folder_stat(copy), wanted, order.store.mtime_step_ns)
    return wanted, lost + [kind for kind in found if kind not in lost]


def refresh_links(journal: Journal, order: Order) -> None:
    """A link changes the change time of its inode: the rows of all its names are written again, or a rerun would read
    them.
    """
    with Folders(order.store.root) as there:
        for path, leader in journal.noted("leader"):
            _refresh(journal, order, there, path)
            _refresh(journal, order, there, leader)


def _refresh(journal: Journal, order: Order, there: Folders, path: bytes) -> None:
    row = journal.row(path)
    if row is None or row.state != states.DONE or not order.store.disk.steady:
        return
    try:
        head, _, name = stored_path(journal, order.names, path).rpartition("/")
        entry = system.lstat(there.open(head), name)
    except (OSError, ScopeferryError):
        return
    stored = fingerprint(entry.st_ino, entry.st_ctime_ns, entry.st_size)
    if stored != row.stored and entry.st_nlink > 1:
        folder = path[: len(path) - len(row.name)]
        journal.settle([(folder, row._replace(stored=stored), {})])
