"""A folder that is being written, as a source: its files as they become whole. Scanning is the truth, events are hints.

A *pass* every `scan_interval_s` looks at the folders that are due and lists those whose time moved; the longer a folder
has been calm, the rarer it is due. A *walk* lists everything, at the start, now and then, and when asked for. Files not
yet whole and metadata are looked at one by one, since growth in place moves no folder's time. Where the kernel tells of
changes a name is looked at sooner, and that is all: whatever it tells, forgets or repeats, the same files come out.

It assumes that the root is there when it begins, decides nothing about the copy, and knows no Zarr: when a file is
whole and what kind of file it is are questions to `whole` and `rank`.

What always holds, and in which piece it is kept:

1. *Everything comes out.* What is in the tree and whole comes out in its last version after finitely many passes and
   one walk, whatever events were lost. Hence no folder is ever nowhere: it is due, to be checked, wanted, or being
   listed (``growing_folders.py``); and what cannot be looked at is tried again, never taken for empty
   (``growing_listing.py``).
2. *Nothing comes out too early or twice.* Not before `whole` says so, no temporary name, each path once until it is
   settled, no version that is known (``growing_files.py``, ``outbox.py``).
3. *A walk is evidence only of itself.* It lists each folder once after it began, along ways that were found after it
   began (``growing_way.py``), and a listing that failed in it is counted. `items` ends only after a walk that failed
   nowhere and found nothing, with nothing changed since.
4. *Gone needs proof* (``growing_listing.py``). A root that is not there says nothing of its files.
5. *It is bounded.* In memory are the folders, and of the files only those that are not settled: what is done is asked
   of `known`, folder by folder; what finds no room stays unread in its folder until there is room
   (``growing_limits.py``). No kind of file holds up another: looks, checks and listings take turns (`_step`).
6. *It costs its share.* A look is repeated after 20 times what it took, folders that are calm more rarely; but nothing
   is put off because this process was stopped for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Self

from scopeferry.errors import Refused, UsageError
from scopeferry.kernel.publish import Mark
from scopeferry.sources import growing_limits as limits
from scopeferry.sources.growing_files import IGNORE, READY, WAIT, Files, Rules, Whole, all_chunks, at_sight
from scopeferry.sources.growing_folders import Rounds
from scopeferry.sources.growing_hints import Hints
from scopeferry.sources.growing_listing import Listings
from scopeferry.sources.growing_signs import Signs
from scopeferry.sources.growing_walks import Walk, Walks
from scopeferry.sources.growing_way import Way
from scopeferry.sources.known import Known, NothingKnown
from scopeferry.sources.outbox import CHUNK, MARKER, METADATA, Found, Gone, Outbox, Version
from scopeferry.sources.tree import Selection, TreeSource

__all__ = ["CHUNK", "IGNORE", "MARKER", "METADATA", "READY", "WAIT", "Found", "Gone", "GrowingTree", "Version", "Walk"]


class GrowingTree:
    """Iterate over `items`; call `settled`, `again` or `failed` for each item that came out. Close it when done.

    ``watch``: ``auto`` (events where there are any, and scans), ``scan``, ``events`` (watched folders are scanned each
    60 s only). ``rank``: METADATA goes first, MARKER after everything else and only when it is to end. ``temporary``:
    is this name a writer's temporary one? All in one thread.

    What the decision about the end needs: ``newest_change_ns`` (change time in the source, of the source's clock),
    ``changed_s`` (when we last saw a change, monotonic), ``newest`` (the file) and ``newest_file_ns``, ``gap_s``
    and ``chunk_gap_s``, ``temporary_names``, ``not_whole``, ``markers``, ``walk`` and ``walks``, ``drained``,
    ``unreadable``, ``absent_since``.
    """

    def __init__(
        self,
        source: TreeSource,
        *,
        watch: str = "auto",
        scan_interval_s: float = 0.5,
        whole: Whole = at_sight,
        rank: Callable[[str], int] = all_chunks,
        known: Known | None = None,
        temporary: Callable[[str], bool] | None = None,
        selection: Selection | None = None,
    ) -> None:
        if watch not in {"auto", "scan", "events"}:
            raise UsageError(f"--watch is auto, scan or events, not {watch!r}", code="SF-105")
        self.source, self.watch, self.scan_interval_s = source, watch, scan_interval_s
        disk = source.disk
        most_look_s = limits.MOST_LOOK_NETWORK_S if disk.network else limits.MOST_LOOK_S
        selection = selection if selection is not None and selection.rules else None
        rules = Rules(whole, rank, temporary, selection, known or NothingKnown())
        self._out = Outbox()
        self._signs = Signs(steady=disk.steady)
        self._rounds = Rounds(scan_interval_s, events=watch == "events", most_look_s=most_look_s)
        self._walks = Walks(self._rounds, self._signs)
        self._way = Way(source, opened=self._begin_with_root, back=self.begin_walk)
        self._files = Files(rules, self._out, self._way, self._rounds, self._signs, steady=disk.steady)
        self._hints = Hints(self._rounds, self._signs, self._files.is_temporary)
        self._listings = Listings(
            self._files, self._out, self._way, self._rounds, self._signs, self._hints,
            trusted=disk.type in limits.TRUSTED, steady=disk.steady,
        )  # fmt: skip
        self._begun = False
        self._work_at = 0.0
        self.passes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all descriptors; twice is harmless."""
        self._listings.stop()
        self._hints.close()
        self._way.close()

    def _begin_with_root(self) -> None:
        """The root was opened, perhaps another mount of it: nothing of what was begun is worth anything."""
        self._listings.stop()
        self._hints.close()
        self._rounds.want_all()
        if self.watch != "scan" and not self.source.disk.network:
            self._hints.open()

    # -- what comes out ------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[Found | Gone | None]:
        """What is ready, each path once until it is settled; None where nothing is, within 50 ms (it never sleeps).

        It ends after `finish`, when a walk has found nothing and everything is settled. Another call goes on where an
        earlier one was left, after a walk: what waited to go may have been done by others meanwhile.
        """
        if self._begun:
            self._forget_queue()
        self._begun = True
        if not self._walks.going:
            self.begin_walk()
        while True:
            now = time.monotonic()
            if now >= self._work_at or not self._out.queued:
                self._work(now + limits.SLICE_S)
                now = time.monotonic()
                self._work_at = now + limits.SLICE_S
            found = self._out.take(now, ending=self._files.ending) if self.absent_since is None else None
            if found is None and self._files.ending and self._over(now):
                found = self._out.take_last()
                if found is None and self._out.out == 0:
                    return
            yield found

    def _forget_queue(self) -> None:
        for path in self._out.waiting():
            self._out.withdraw(path)
        self._walks.stop()

    def finish(self) -> None:
        """It is over: hold nothing off, walk until nothing is found, then let `items` end."""
        self._files.ending = True
        self._files.refused.clear()
        self.begin_walk()

    def resume(self) -> None:
        """It is not over after all."""
        self._files.ending = False

    def _over(self, now: float) -> bool:
        """Is everything found, gone out and settled?"""
        if not self.drained or self._out.out:
            return False
        if self._files.looks.any_unsettled(now):
            return False
        if self._rounds.crowded and now - self.changed_s < limits.SETTLES_S:
            return False
        if self._walks.found_all:
            return True
        self.begin_walk()
        return False

    def settled(self, path: str) -> None:
        """An item is done (or set aside), and what is known says so from now on."""
        if self._out.settled(path):
            self._files.looks.soon(path, 0.0)

    def again(self, path: str, *, failed: bool = False, after_s: float = 0.0) -> None:
        """An item is to be looked at again after `after_s`, and comes out if it differs from what is known.

        ``failed``: it could not be read; then this version comes out again only in the walks after `finish`.
        """
        latest = self._out.latest(path)
        changed = self._out.settled(path)
        if failed and latest is not None and not changed:
            self._files.refused[path] = latest
            return
        self._out.changed(path, time.monotonic())
        self._files.looks.soon(path, after_s)

    def failed(self, path: str) -> None:
        """An item could not be read: the same as ``again(path, failed=True)``."""
        self.again(path, failed=True)

    # -- what the end is decided from ----------------------------------------------------------------------------------

    @property
    def gap_s(self) -> float:
        """The longest pause between two modification times of files so far, in seconds."""
        return self._signs.gaps.longest_ns / 1e9

    @property
    def chunk_gap_s(self) -> float:
        """The same of files that are named as chunks are: a protocol of last year is no pause of an acquisition."""
        return self._signs.key_gaps.longest_ns / 1e9

    @property
    def newest_change_ns(self) -> int:
        """The newest change time of a file or folder, of the source's clock."""
        return self._signs.newest_change_ns

    @property
    def newest_file_ns(self) -> int:
        """The same of a file."""
        return self._signs.newest_file_ns

    @property
    def newest(self) -> str:
        """That file."""
        return self._signs.newest

    @property
    def changed_s(self) -> float:
        """When a change was last seen (``time.monotonic``)."""
        return self._signs.changed_s

    @property
    def absent_since(self) -> float | None:
        """Since when the root is not there (``time.monotonic``)."""
        return self._way.absent_since

    @property
    def temporary_names(self) -> dict[str, float]:
        """Paths of temporary names that are there -> when each was first seen (``time.monotonic``)."""
        return self._signs.temporary_names

    @property
    def markers(self) -> dict[str, tuple[Version, float]]:
        """Paths of markers that are there -> version, when it was seen (``time.monotonic``)."""
        return self._signs.markers

    @property
    def marked(self) -> int:
        """How often `markers` changed."""
        return self._signs.marked

    @property
    def unreadable(self) -> dict[str, str]:
        """Paths that cannot be looked at -> why."""
        return self._signs.unreadable

    @property
    def special(self) -> set[str]:
        """Paths of what is neither file, folder nor link."""
        return self._signs.special

    @property
    def in_flight(self) -> int:
        """How many items came out and are not settled."""
        return self._out.out

    @property
    def waiting(self) -> int:
        """How many items are ready but have not come out, held off ones too; at least one for each unread folder."""
        return self._out.queued + self._out.held + len(self._rounds.unread) + (self._listings.backlog is not None)

    @property
    def not_whole(self) -> list[str]:
        """Paths of files that are not whole yet."""
        return self._files.looks.not_whole

    @property
    def looked_at(self) -> int:
        """How many files are looked at one by one."""
        return len(self._files.looks.by_path)

    @property
    def folders(self) -> int:
        """How many folders there are."""
        return len(self._rounds.by_path)

    @property
    def watches(self) -> int:
        """How many folders are watched."""
        return len(self._hints)

    @property
    def listings(self) -> int:
        """How many listings of a folder were begun."""
        return self._listings.count

    @property
    def walking(self) -> bool:
        """Does a walk go on?"""
        return self._walks.going

    @property
    def walk(self) -> Walk | None:
        """The last walk that has ended."""
        return self._walks.last

    @property
    def walks(self) -> int:
        """How many walks have ended."""
        return self._walks.count

    @property
    def drained(self) -> bool:
        """Has everything that was found and is whole come out, and is nothing being looked for? (In flight there may
        still be some.)
        """
        rounds = self._rounds
        busy = rounds.wanted or self._listings.active or rounds.checks or self._walks.going or self._files.looks.again
        return not (busy or self.waiting)

    def empty_folders(self) -> Iterator[str]:
        """Folders in which the last listing found nothing (but temporary names)."""
        folders = list(self._rounds.by_path.values())
        return (folder.path for folder in folders if folder.empty and folder is not self._rounds.root)

    def take_went(self) -> list[str]:
        """Temporary names that came and went since the last call: a lock that left no chunk behind tells of an empty
        one.
        """
        return self._signs.take_went()

    def take_notes(self) -> list[str]:
        """What a person should know, each said once: watches that were lost, a queue that ran over."""
        return self._signs.take_notes()

    def note_change(self, path: str, mark: Mark) -> None:
        """Somebody else has seen this version of a file: if it is newer than all that we saw, something has changed."""
        self._signs.note_change(path, mark)

    def look_for_markers(self) -> None:
        """Have those that somebody has taken away say nothing, now."""
        self._listings.look_for_markers()

    def begin_walk(self) -> None:
        """List everything; `walk` is a later one when it has ended. One that goes on is begun anew."""
        self._walks.begin()
        self._way.moved = True  # a way that was found before may lead to a folder that has been moved since

    # -- work, in slices -----------------------------------------------------------------------------------------------

    def _work(self, until: float) -> None:
        now = time.monotonic()
        if self.absent_since is not None or not self._way.is_open:
            if now < self._rounds.pass_at:
                return
            self._rounds.pass_at = now + self.scan_interval_s
            if not self._way.present(anew=True):
                return
        self._take_hints()
        if self._out.queued:
            until = min(until, time.monotonic() + limits.SLICE_S / 8)
        while self._step(time.monotonic()) and time.monotonic() < until:
            pass

    def _take_hints(self) -> None:
        """Look at what the kernel tells of, name by name."""
        for folder, names in self._hints.read().items():
            if not self._rounds.there(folder):
                continue
            try:
                self._files.judge(folder, list(names), self._files.known.names(folder.path, names), told=True)
            except (OSError, Refused):
                self._rounds.soon(folder)

    def _step(self, now: float) -> bool:
        """A little work; False if there is none. Each gets its turn: neither looks nor checks hold up the listings."""
        self._way.refresh()
        if now >= self._rounds.pass_at:
            self._begin_pass(now)
            return self.absent_since is None
        busy = self._files.looks.is_due(now)
        if busy:
            self._files.take_looks(now)
            self._way.refresh()
        if self._rounds.checks:
            self._listings.check_some(now)
            busy = True
        if len(self._listings.active) < 2:
            folder = self._rounds.next_wanted() or self._walks.next_to_list()
            if folder is not None:
                self._listings.begin(folder)
        if self._listings.active:
            self._advance()
            return True
        if busy:
            return True
        if self._walks.going and not self._rounds.wanted:
            self._walks.end(now, failed=self.absent_since is not None)
            return True
        return self._listings.read_backlog()

    def _advance(self) -> None:
        began = time.monotonic()
        self._listings.advance()
        self._walks.spend(self._rounds.spent(began, limits.BATCH))

    def _begin_pass(self, now: float) -> None:
        self._rounds.pass_at, self._rounds.pass_began = now + self.scan_interval_s, now
        if not self._way.present(anew=True):
            return
        self._way.forget()
        self.passes += 1
        self._out.forget_calm(now)
        if not self._walks.going and now >= self._walks.at:
            self.begin_walk()
        self._rounds.begin_pass(now)
