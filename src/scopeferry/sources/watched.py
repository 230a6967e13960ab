"""One source watched while it is written: what is ready, what its arrays lack, and whether it is over.

Puts together what each know alone: ``growing.py`` finds, ``ready.py`` says when a file is whole, ``zarr.py`` what a
hierarchy should hold, ``finish.py`` whether all of it together is the end. `live` copies what it yields, `inspect` only
looks. In one thread.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from scopeferry.errors import ScopeferryError
from scopeferry.kernel.publish import Mark, system
from scopeferry.sources.finish import (
    COMPLETE,
    Complete,
    Decision,
    Facts,
    Listed,
    Quiet,
    Rules,
    decide,
    find_markers,
    parse,
    read_complete,
)
from scopeferry.sources.finish_rules import STEM
from scopeferry.sources.growing import CHUNK, MARKER, METADATA, Found, Gone, GrowingTree, Version
from scopeferry.sources.known import Known, NothingKnown
from scopeferry.sources.ready import METADATA as METADATA_NAMES
from scopeferry.sources.ready import Process, Readiness, is_of_metadata, is_temporary
from scopeferry.sources.tree import Selection, TreeSource
from scopeferry.sources.zarr import LOCK_NAME, ZarrTree

MOST_BYTES = 64 << 20  # of metadata that are read
LOCK = "frames.journal.partial"  # open and locked as long as our own acquisition writes
PROBE_EACH_S = 1.0  # between two questions who holds something
PROBE_S = 5.0  # before what is held matters: nobody is probed earlier
CUT = 100  # paths that are named
UNDECIDED_S = 12.0  # after so long a file that is not whole has told who writes it, or never will
EMPTY_S = 1.0  # between two looks for folders that are empty
SLICE_S = 0.02  # of listing again


@dataclass(frozen=True, slots=True)
class Ending:
    """What may end a target: the rules as people write them, and what they need."""

    finish: Sequence[str] = ("auto",)
    settle_s: float = 10.0
    settle_given: bool = False
    expect: str = "auto"
    writer: str = "auto"
    writer_pid: int | None = None


def _not_there(file: str) -> Listed:
    return Listed(file, there=False)


class _ButMetadata:
    """What is known, but metadata: those come out once more in each run, for they say what there should be."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self.told: set[str] = set()

    def folder(self, folder: str) -> Mapping[str, Version]:
        """See Known."""
        return self._but(folder, self._known.folder(folder))

    def names(self, folder: str, names: Collection[str]) -> Mapping[str, Version]:
        """See Known."""
        return self._but(folder, self._known.names(folder, names))

    def count(self, folder: str) -> int:
        """See Known."""
        return (
            self._known.count(folder)
            - len(self._known.names(folder, METADATA_NAMES))
            + len(self.names(folder, METADATA_NAMES))
        )

    def _but(self, folder: str, found: Mapping[str, Version]) -> Mapping[str, Version]:
        head = f"{folder}/" if folder else ""
        hidden = [name for name in METADATA_NAMES if name in found and head + name not in self.told]
        return {name: found[name] for name in found if name not in hidden} if hidden else found


class Watched:
    """Iterate over `items` as over those of a ``GrowingTree``, whose `settled` and `again` it passes on; ask `decide`
    now and then. ``listed`` reads the lists of ``manifest=FILE`` rules. Close it when done.
    """

    def __init__(
        self,
        source: TreeSource,
        ending: Ending,
        *,
        watch: str = "auto",
        scan_interval_s: float = 0.5,
        selection: Selection | None = None,
        known: Known | None = None,
        listed: Callable[[str], Listed] = _not_there,
    ) -> None:
        self.source, self.ending, self._listed = source, ending, listed
        self.rules: Rules = parse(ending.finish)
        self._globs = bool(self.rules.values("marker"))
        self._known: Known = known or NothingKnown()
        self._shown = _ButMetadata(self._known)
        self.zarr = ZarrTree()
        self.ready = Readiness(
            source.root,
            source.disk,
            writer=ending.writer,
            array_of=self.zarr.array_of,
            whole=self._whole,
        )
        self.tree = GrowingTree(
            source,
            watch=watch,
            scan_interval_s=scan_interval_s,
            whole=self.ready,
            rank=self.rank,
            known=self._shown,
            temporary=self.ready.temporary,
            selection=selection,
        )
        self.declared_by = ""
        self.acquired = 0
        self._process = Process(ending.writer_pid) if ending.writer_pid is not None else None
        self._quiet = Quiet(network=source.disk.network)
        self._clock = time.time() - time.monotonic()
        self._walked_s: float | None = None
        self._marked: dict[str, tuple[float, int]] = {}
        self._marks = 0
        self._array_ns: dict[str, int] = {}  # mtime of the metadata of each array
        self.begun = False  # is, or was, any file there?
        self._complete: tuple[Complete, int] | None = None
        self._complete_version: tuple[int, int, int] | None = None
        self._lock_held = ""
        self._probed: Collection[str] = ()
        self._anybodys: list[str] = []  # temporary names that may be anybody's
        self._in_use: list[str] = []  # those that somebody writes
        self._probe_at = self._list_at = self._stray_at = 0.0
        self._absent = 0
        self._waits: dict[str, float] = {}  # files that are not whole -> since when they are seen
        self._untold: set[str] = set()
        self._torn: set[str] = set()  # shards that came out before it was known that they are some
        self._empty_at = 0.0
        self._relisted: deque[Iterator[None]] = deque()
        self._expected = _read_list(ending.expect) if ending.expect not in {"auto", "dense", "sparse"} else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all descriptors."""
        self.tree.close()
        self.ready.close()

    def rank(self, path: str) -> int:
        """METADATA, CHUNK (all other files, too) or MARKER."""
        name = path.rpartition("/")[2]
        perhaps = self._globs or name.startswith(STEM)  # asked of every name: most are told apart by this
        if perhaps and (self.rules.marks(path) or self.rules.marks_array(path)):
            return MARKER
        return METADATA if name in METADATA_NAMES else CHUNK

    # -- what comes out ------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[Found | Gone | None]:
        """See ``GrowingTree.items``."""
        for found in self.tree.items():
            if isinstance(found, Found):
                self._note(found)
            elif found is None:
                self._note_rest()
            yield found

    def _note(self, found: Found) -> None:
        self.begun = True
        before = found.before
        if before is None and _is_metadata(found.path):  # hidden from the tree, see _ButMetadata
            head, _, name = found.path.rpartition("/")
            before = self._known.names(head, [name]).get(name)
        self.acquired += found.size - (before.size if before is not None else 0)
        self._shown.told.add(found.path)
        if not self._tell(found.path, found.mtime_ns, again=found.before is not None):
            self._untold.add(found.path)

    def _tell(self, path: str, mtime_ns: int | None, *, again: bool = False) -> bool:
        """A file is there (and, `again`, in another version than before): tell what it means; False if nothing yet."""
        if not _is_metadata(path):
            return self._present(path, again=again)
        raw = self._read(path)
        if raw is not None:
            change = self.zarr.metadata(path, raw)
            if change.array is not None and mtime_ns is not None and path.endswith(("zarr.json", ".zarray")):
                self._array_ns[change.array] = mtime_ns
            if change.relist and change.array is not None:
                self._relisted.append(self._relist(change.array))
        return True

    def walked_over(self, path: str, mark: Mark) -> None:
        """A file came with a walk of somebody else's, and is copied: what is newer than all we saw is a change."""
        self.tree.note_change(path, mark)
        self._tell(path, mark.mtime_ns)

    def catch_up(self) -> None:
        """Tell all that is to be told of again, now; markers that were taken away say nothing."""
        while self._relisted:
            for _ in self._relisted.popleft():
                pass
        self.tree.look_for_markers()
        self._note_markers()

    def settled(self, path: str) -> None:
        """See ``GrowingTree.settled``."""
        self.tree.settled(path)
        if path in self._untold:  # its array may have become known meanwhile
            self._untold.discard(path)
            self._present(path)

    def _present(self, path: str, *, again: bool = False) -> bool:
        """A file is there (and, `again`, in another version than before): is it a chunk? Then it is written."""
        chunk = self.zarr.present(path, again=again)
        if chunk and self.zarr.is_shard(path):
            self._torn.discard(path)
            with suppress(OSError, ScopeferryError), _File(self.source, path) as file:
                if not self.zarr.shard(path, file) and self._whole(path) is False:
                    self._torn.add(path)
        return chunk

    def _relist(self, array: str) -> Iterator[None]:
        """Files of an array that were seen before its metadata, or by an earlier run, are told of again."""
        stack = [array]
        while stack:
            at = stack.pop()
            head = f"{at}/" if at else ""
            for name in self._known.folder(at):
                self._present(head + name)
            yield
            with (
                suppress(OSError, ScopeferryError),
                self.source.folders() as folders,
                system.scan(folders.open(at)) as listing,
            ):
                stack += [head + entry.name for entry in listing if entry.is_dir(follow_symlinks=False)]

    def _note_rest(self) -> None:
        for path in self.tree.take_went():
            match = LOCK_NAME.fullmatch(path)
            if match is not None and not self._exists(match[1]):
                self.zarr.lock_went(path)
        self._note_markers()
        until = time.monotonic() + SLICE_S
        while self._relisted and time.monotonic() < until:
            if next(self._relisted[0], self) is self:
                self._relisted.popleft()

    def _note_markers(self) -> None:
        if self._marks != self.tree.marked:
            self._marks = self.tree.marked
            markers = self.tree.markers.items()
            self._marked = {path: (seen_s + self._clock, version.mtime_ns) for path, (version, seen_s) in markers}
            self.begun = self.begun or bool(markers)

    def walked(self, begun_s: float) -> None:
        """A full walk by somebody else, begun at this time (``time.monotonic``), has found nothing new."""
        self._walked_s = max(begun_s, self._walked_s or begun_s)

    # -- is it over? ---------------------------------------------------------------------------------------------------

    def decide(self) -> Decision:
        """From all that is seen now. A marker is believed after a walk that began when it was seen: that is begun."""
        facts = self.facts()
        decision = decide(self.rules, facts)
        if not decision.ends and not self.tree.walking:
            marked = max((marker.seen_s for marker in facts.markers if not marker.left_over), default=None)
            if marked is not None and (facts.walk_begun_s is None or facts.walk_begun_s < marked):
                self.tree.begin_walk()
        return decision

    def facts(self) -> Facts:
        """All that is seen now."""
        tree, ready, zarr, ending = self.tree, self.ready, self.zarr, self.ending
        self._note_markers()
        if time.monotonic() >= self._empty_at:
            began = time.monotonic()
            for path in tree.empty_folders():
                zarr.folder_empty(path)
            self._empty_at = began + max(EMPTY_S, 50 * (time.monotonic() - began))
        now_s = time.monotonic() + self._clock
        quiet_s = self._quiet.look(tree.newest_change_ns, tree.changed_s)
        walk = tree.walk
        if walk is not None and not (walk.found_new or walk.failed):
            self.walked(walk.begun_s)
        not_whole = tree.not_whole
        ready.keep_only(not_whole)
        self._look_at_complete()
        metadata = self._array_ns.values()
        oldest = min(metadata, default=None)
        complete = self._complete
        locks = self._locks()
        temporary, strays = self._temporary_names(locks)
        self._torn = {path for path in self._torn if self._exists(path)}
        torn, unparsable = list(dict.fromkeys([*ready.torn, *sorted(self._torn)])), ready.unparsable
        total, absent = self._list_state()
        return Facts(
            now_s=now_s,
            quiet_s=quiet_s,
            gap_s=tree.chunk_gap_s if zarr.found else tree.gap_s,
            settle_s=ending.settle_s,
            settle_given=ending.settle_given,
            listed=walk is not None and tree.absent_since is None and not self._relisted,
            begun=self.begun,
            newest=tree.newest,
            declared_by=self.declared_by,
            complete=complete[0] if complete is not None else None,
            complete_left_over=complete is not None and oldest is not None and complete[1] < oldest,
            manifests=[self._manifest(file) for file in self.rules.values("manifest")],
            markers=find_markers(self.rules, self._marked, plate_arrays=zarr.plate_arrays(), metadata_ns=metadata),
            walk_begun_s=None if self._walked_s is None else self._walked_s + self._clock,
            in_flight=tree.in_flight + tree.waiting + self._undecided(not_whole),
            writer_pid=ending.writer_pid,
            writer_alive=None if self._process is None else self._process.alive,
            writer_seen=self._process is None or self._process.seen,
            locks=locks,
            lock_released=self._lock_held if not locks else "",
            open_files=ready.open_files(time.time()),
            torn=torn,
            temporary=temporary,
            unparsable=unparsable,
            held=self._held([*torn, *temporary, *unparsable], quiet_s),
            blind=not ready.probes,
            strays=strays,
            promised=zarr.promised()[:CUT],
            hierarchy=zarr.found,
            expected=zarr.expected,
            there=zarr.written,
            empty=zarr.known_empty,
            grew=zarr.grew(),
            expect="file" if self._expected is not None else ending.expect,
            list_total=total,
            list_absent=absent,
        )

    def _undecided(self, not_whole: Collection[str]) -> int:
        """How many files were seen so lately that it is not known yet whether somebody writes them."""
        now = time.monotonic()
        self._waits = {path: self._waits.get(path, now) for path in not_whole}
        return sum(now - since_s < UNDECIDED_S for since_s in self._waits.values())

    def _look_at_complete(self) -> None:
        """What our own acquisition says of its end; read again where it is another version."""
        if COMPLETE not in self._marked:
            self._complete = self._complete_version = None
            return
        try:
            with _File(self.source, COMPLETE) as file:
                found = file.stat()
                version = found.st_ino, found.st_size, found.st_mtime_ns
                if version == self._complete_version:
                    return
                raw = file.read(0, min(found.st_size, MOST_BYTES))
        except (OSError, ScopeferryError):
            self._complete = None
            return
        self._complete_version = version
        said = read_complete(raw)
        self._complete = None if said is None else (said, found.st_mtime_ns)
        oldest = min(self._array_ns.values(), default=None)
        if said is not None and (oldest is None or found.st_mtime_ns >= oldest):
            self.zarr.ended(said)

    def _held(self, paths: Sequence[str], quiet_s: float) -> Collection[str]:
        """Who is held. Nobody is probed before it matters; until then all of them count as held."""
        if not paths or quiet_s < max(600.0, 60 * self.ending.settle_s) - PROBE_S:
            return paths
        if time.monotonic() >= self._probe_at:
            self._probed, self._probe_at = self.ready.held(paths), time.monotonic() + PROBE_EACH_S
        return self._probed

    @property
    def asking(self) -> bool:
        """Is it being found out who holds what is not right? Then another `decide` may know more."""
        return self.ready.unsure

    def _temporary_names(self, locks: Collection[str]) -> tuple[list[str], list[str]]:
        """Those of writers, which never stay; and those that may be anybody's, as far as they are in use.

        A journal of ours that is not locked was left by a writer that died.
        """
        writers: list[str] = []
        anybodys: list[str] = []
        for path in self.tree.temporary_names:
            if path not in locks:
                of_writer = is_temporary(path, self.ending.writer, ending=True) or self._is_of_array(path)
                (writers if of_writer else anybodys).append(path)
        if time.monotonic() >= self._stray_at or anybodys != self._anybodys:
            self._anybodys = anybodys
            self._in_use = self.ready.in_use(anybodys[:CUT], self.ending.settle_s)
            self._stray_at = time.monotonic() + PROBE_EACH_S
        return writers, self._in_use

    def _is_of_array(self, path: str) -> bool:
        """Is it a temporary name of a chunk, or of metadata?"""
        head, slash, name = path.rpartition("/")
        name = name.removeprefix(".~")
        parts = name.split(".")
        names = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
        return is_of_metadata(name) or any(self.zarr.chunk_of(head + slash + one) is not None for one in names if one)

    def _manifest(self, file: str) -> Listed:
        """What a list says; it is not believed before it is itself whole."""
        path = os.path.relpath(os.path.join(self.source.root, os.path.expanduser(file)), self.source.root)
        return self._listed(file)._replace(whole=path not in self.tree.not_whole)

    def _locks(self) -> list[str]:
        held = [path for path in self.tree.temporary_names if path.endswith(LOCK) and self.ready.locked(path)]
        if held:
            self._lock_held = held[0]
        return held

    def _list_state(self) -> tuple[int, int]:
        """(chunks listed, those of them that are neither there nor empty) of the file of ``--expect``."""
        if self._expected is None:
            return 0, 0
        if time.monotonic() >= self._list_at:
            began = time.monotonic()
            self._absent = sum(not self.zarr.is_there(key) for key in self._expected)
            self._list_at = began + 50 * (time.monotonic() - began)
        return len(self._expected), self._absent

    # -- looking at files ----------------------------------------------------------------------------------------------

    def _exists(self, path: str) -> bool:
        try:
            return os.path.lexists(os.path.join(self.source.root, path))
        except ValueError:
            return False

    def _whole(self, path: str) -> bool | None:
        if not self.zarr.is_shard(path):
            return None
        try:
            with _File(self.source, path) as file:
                return self.zarr.shard_is_whole(path, file)
        except (OSError, ScopeferryError):
            return None

    def _read(self, path: str) -> bytes | None:
        try:
            with _File(self.source, path) as file:
                return file.read(0, min(file.size, MOST_BYTES))
        except (OSError, ScopeferryError):
            return None


class _File:
    """A file of the source that is looked into here and there, opened at the first read."""

    def __init__(self, source: TreeSource, path: str) -> None:
        self._source, self._path = source, path
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        if self._fd < 0:
            head, _, name = self._path.rpartition("/")
            with self._source.folders() as folders:
                self._fd = system.open_source(folders.open(head), name)
        return self._fd

    def stat(self) -> os.stat_result:
        """Of the open file."""
        return system.fstat(self._open())

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes at an offset, fewer at the end."""
        block = bytearray(length)
        got = system.read_into(self._open(), memoryview(block), offset)
        return bytes(block[:got])


def _is_metadata(path: str) -> bool:
    return path.rpartition("/")[2] in METADATA_NAMES


def _read_list(file: str) -> tuple[str, ...] | None:
    """Paths or keys, one a line; None if it cannot be read."""
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as lines:
            return tuple(dict.fromkeys(text for line in lines if (text := line.strip()) and not text.startswith("#")))
    except OSError:
        return None
