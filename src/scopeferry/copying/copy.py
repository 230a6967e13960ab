"""Copy one item, or settle by reading that it is there already; and remember what became of it.

`CopyItem` is the task: its row says what the plan expects at the destination, its batch goes through ``Store.put``.
`CopyLedger` writes the record's lines and then the journal's rows, so the journal never leads. `copy_tasks` reads the
plan.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scopeferry.copying.left import SAID
from scopeferry.copying.order import Order, stored_path
from scopeferry.copying.record import (
    GIVEN,
    Record,
    action_after,
    given_names,
    names_given,
    path_json,
    xattrs_json,
)
from scopeferry.errors import Refused, ScopeferryError, SourceChanged
from scopeferry.kernel import journal as states
from scopeferry.kernel import publish
from scopeferry.kernel.events import Event
from scopeferry.kernel.journal import Journal, Row, fingerprint
from scopeferry.kernel.publish import Folders, Mark, system
from scopeferry.kernel.run import Result
from scopeferry.kernel.task import Control, Failure, Outcome
from scopeferry.logs import printable
from scopeferry.sources.tree import Ahead, is_recent
from scopeferry.stores.files import StoredFile, is_servers_own
from scopeferry.stores.store import Attributes, Entry, GoneError, SourceGoneError, Upload

GONE_WAIT_S = 0.5  # before a destination that was gone is asked again
LOST = {"SF-202", "SF-204", "SF-205", "SF-322"}  # what is said of a file when the whole source is gone, too
READ_WAITS_S = (0.1, 1.0, 5.0)  # between the tries at a file that a server does not give
WROTE = {"SF-204", "SF-206", "SF-209", "SF-211", "SF-212"}  # failures after a temporary file was made in the folder


@dataclass(frozen=True, slots=True)
class Copied:
    """The payload of an outcome: what was done, from which source, what stood there before, what was lost."""

    action: str
    source: Mark
    attempts: int = 1
    lost: tuple[str, ...] = ()
    attributes: Attributes | None = None
    was: str | None = None
    target: str | None = None
    stored: str | None = None
    note: str | None = None
    aside: str = ""
    dropped: dict[str, bytes] = field(default_factory=dict)  # attributes of somebody's that an adopted file had


@dataclass(frozen=True, slots=True)
class CopyItem:
    """One file or symbolic link of the plan. ``key`` is its path at the source, as the system decodes it."""

    order: Order
    key: str
    row: Row
    beside: str | None = None  # its path at the destination, where an earlier run kept both
    given: frozenset[str] = frozenset()  # extended attributes that an earlier run gave to the copy

    @property
    def revision(self) -> str:
        """Input and recipe."""
        return f"{self.row.size}:{self.row.mtime_ns}:{self.row.source}:{self.order.recipe}"

    @property
    def size(self) -> int:
        """Bytes of work."""
        return self.row.size

    @property
    def stored(self) -> str:
        """Its path at the destination."""
        if self.beside is not None:
            return self.beside
        return self.key if self.order.names is None else str(self.order.names.full(self.key))

    @staticmethod
    def run_batch(tasks: Sequence[CopyItem], control: Control) -> list[Outcome | Failure]:
        """Copy or compare them all; one answer for each."""
        answers = _run(tasks, control)
        _wait_for_source(tasks, answers, control)
        _wait_for_destination(tasks, answers, control)
        taken = [i for i, answer in enumerate(answers) if isinstance(answer, Failure) and answer.code == "SF-501"]
        again = {i: task for i in taken if (task := _judged_now(tasks[i], control)) is not None}
        if again:
            for i, answer in zip(again, _run(list(again.values()), control), strict=True):
                answers[i] = answer
        if tasks[0].order.pause_s:
            control.sleep(tasks[0].order.pause_s)
        return answers


def _wait_for_source(tasks: Sequence[CopyItem], answers: list[Outcome | Failure], control: Control) -> None:
    """Where the source is gone, and not its files, wait and try these again. A server may need a moment to be gone."""
    source = tasks[0].order.source
    pauses = list(READ_WAITS_S) if source.disk.network else []
    while lost := [i for i, answer in enumerate(answers) if isinstance(answer, Failure) and answer.code in LOST]:
        codes = {getattr(answers[i], "code", "") for i in lost}
        try:
            if "SF-322" in codes or not source.answers():
                control.wait_for("source", source.answers, control.patience_gone_s, source.gone())
            elif pauses and "SF-204" in codes:
                control.sleep(pauses.pop(0))
            else:
                return
            _try_again(lost, tasks, answers, control, "source")
        except ScopeferryError as reason:
            for i in lost:
                answers[i] = Failure.of(tasks[i].key, reason)
            return


def _wait_for_destination(tasks: Sequence[CopyItem], answers: list[Outcome | Failure], control: Control) -> None:
    """Where the destination went away while it was asked what stands there, wait and try these again."""
    store = tasks[0].order.store
    while lost := [i for i, answer in enumerate(answers) if isinstance(answer, Failure) and answer.code == "SF-323"]:
        try:
            control.sleep(GONE_WAIT_S)
            control.wait_for("destination", store.answers, control.patience_gone_s, store.gone())
            _try_again(lost, tasks, answers, control, "destination")
        except ScopeferryError as reason:
            for i in lost:
                answers[i] = Failure.of(tasks[i].key, reason)
            return


def _try_again(
    lost: Sequence[int], tasks: Sequence[CopyItem], answers: list[Outcome | Failure], control: Control, side: str
) -> None:
    for i, answer in zip(lost, _run([tasks[i] for i in lost], control), strict=True):
        answers[i] = answer
        if isinstance(answer, Outcome):
            control.done_waiting(side)


def _judged_now(task: CopyItem, control: Control) -> CopyItem | None:
    """The task of an item whose name was taken after the plan had looked, by somebody or by a worker that died; or
    whose second name is, by a run that died; or whose change time moved with another name of its inode. None if it has
    been judged by what stands there already.
    """
    order, row = task.order, task.row
    if row.state in {states.CHECK, *states.CHECK_ONE}:
        return replace(task, row=row._replace(state=states.CHECK))
    if row.state in {states.COPY, states.REPLACE} or (row.state == states.JUDGE and order.policy == "replace"):
        return replace(task, row=row._replace(state=states.JUDGE))
    if row.state != states.JUDGE or row.kind != states.FILE or order.policy != "keep-both" or task.beside is not None:
        return None
    working = order.store.digests[0]
    try:
        with order.source.folders() as here:
            digest = _read_source(order, here, task.key, (working,), control)[0][working]
    except (OSError, ScopeferryError):
        return None
    head, slash, name = task.stored.rpartition("/")
    return replace(task, beside=head + slash + beside_name(name, digest))


def _run(tasks: Sequence[CopyItem], control: Control) -> list[Outcome | Failure]:
    order = tasks[0].order
    answers: dict[int, Outcome | Failure] = {}
    uploads: dict[int, tuple[Upload, dict[str, Any]]] = {}
    try:
        order.store.check_present(control)
        with _stored(order) as there, order.source.folders() as here, Ahead(order.source, here) as ahead:
            for index, task in enumerate(tasks):
                try:
                    control.check()
                    found = _Comparison(task, here, there, control, ahead).settle()
                except (GoneError, SourceGoneError):  # no use in asking for the others, one by one
                    answers.clear()
                    raise
                except ScopeferryError as error:
                    answers[index] = Failure.of(task.key, error, retryable=False)
                    continue
                if isinstance(found, Outcome):
                    answers[index] = found
                else:
                    uploads[index] = found
            _flush_names(tasks, answers, there)
            _put(tasks, uploads, answers, control)
    except (OSError, ScopeferryError) as error:  # a whole side is away, or the run was stopped
        for index, task in enumerate(tasks):
            item = order.source.translated(error, task.key) if isinstance(error, OSError) else error
            answers.setdefault(index, Failure.of(task.key, item))
    return [answers[index] for index in range(len(tasks))]


def _stored(order: Order) -> Folders:
    try:
        return Folders(order.store.root)
    except OSError as error:
        raise order.store.translated(error, order.store.root) from error


def _flush_names(tasks: Sequence[CopyItem], answers: dict[int, Outcome | Failure], there: Folders) -> None:
    """What was found to be there may have got its name just before a run was killed: its folder is flushed too."""
    heads = {tasks[i].stored.rpartition("/")[0] for i, answer in answers.items() if isinstance(answer, Outcome)}
    for head in heads:
        try:
            system.flush_folder(there.open(head))
        except (OSError, ScopeferryError) as error:
            store = tasks[0].order.store
            item = store.translated(error, head or ".") if isinstance(error, OSError) else error
            for i, answer in list(answers.items()):
                if isinstance(answer, Outcome) and tasks[i].stored.rpartition("/")[0] == head:
                    answers[i] = Failure.of(tasks[i].key, item)


def _put(
    tasks: Sequence[CopyItem],
    uploads: dict[int, tuple[Upload, dict[str, Any]]],
    answers: dict[int, Outcome | Failure],
    control: Control,
) -> None:
    if not uploads:
        return
    order = tasks[0].order
    found = order.store.put([upload for upload, _ in uploads.values()], prove=order.prove, control=control)
    for index, answer in zip(uploads, found, strict=True):
        task = tasks[index]
        answers[index] = answer if isinstance(answer, Failure) else _outcome(task, answer, uploads[index][1])


def _outcome(task: CopyItem, entry: Entry, facts: dict[str, Any]) -> Outcome:
    action = facts.get("action", "copied")
    stored = entry.key if entry.key != task.key else None
    source = entry.source or facts["source"]
    copied = Copied(
        action,
        source,
        entry.attempts,
        entry.lost,
        entry.attributes,
        facts.get("was"),
        facts.get("target"),
        stored,
        facts.get("note"),
        entry.aside,
    )
    size = 0 if facts.get("target") is not None else entry.mark.size
    return Outcome(task.key, size, entry.digests, entry.mark, entry.read_back, copied)


def _read_source(
    order: Order, here: Folders, key: str, algorithms: Sequence[str], control: Control
) -> tuple[dict[str, bytes], Mark, Attributes]:
    """The digests of a file of the source, its mark, and what is kept of it."""
    with order.source.open(here, key) as reader:
        attributes = reader.attributes()
        return reader.digest(algorithms, control), reader.check(), attributes


class _Comparison:
    """What the plan expects of one item, looked at now: an upload, or the outcome of reading what is there."""

    def __init__(self, task: CopyItem, here: Folders, there: Folders, control: Control, ahead: Ahead) -> None:
        self.task, self.order, self.here, self.there, self.control = task, task.order, here, there, control
        self.ahead = ahead
        self.row, self.key, self.stored = task.row, task.key, task.stored

    def settle(self) -> tuple[Upload, dict[str, Any]] | Outcome:
        if self.row.kind == states.SYMLINK:
            return self._symlink()
        state, order = self.row.state, self.order
        if state == states.COPY:
            return self._upload(None, "copied")
        there = self._there()
        if there is None:
            return self._upload(None, "copied")
        if state == states.REPLACE:
            if order.tends and not self._is_still(there):
                return self._upload(there, "replaced", was=self._digest_was(), heal=True, note=self._healed())
            self._still(there)
            return self._upload(there, "replaced", was=self._digest_was())
        if state == states.JUDGE and there.size != self.row.size and self.row.digest is None:
            return self._foreign(there, None)
        return self._compare(there)

    # -- both sides are read -------------------------------------------------------------------------------------------

    def _compare(self, there: Mark) -> tuple[Upload, dict[str, Any]] | Outcome:
        """Read the side (or sides) in question; adopt what is equal, heal or judge what is not."""
        state, row, order = self.row.state, self.row, self.order
        working = order.store.digests[0]
        was_algorithm = order.algorithms.get(row.recipe or 0, working)
        source: dict[str, bytes] | None = None
        mark: Mark | None = None
        attributes: Attributes | None = None
        if state != states.CHECK_STORED:
            wanted_algorithms = [*dict.fromkeys((*order.store.digests, was_algorithm))]
            source, mark, attributes = _read_source(order, self.here, self.key, wanted_algorithms, self.control)
        if state == states.CHECK_SOURCE and source is not None and source[was_algorithm] != row.digest:
            return self._upload(there, "replaced", was=self._digest_was())
        copy: dict[str, bytes] | None = None
        read_back, has = "no", dict[str, bytes]()
        if state != states.CHECK_SOURCE:
            copy, read_back, has = self._read_copy([*dict.fromkeys((working, was_algorithm))], there)
        wanted = source[working] if source is not None else row.digest
        found = copy[working if source is not None else was_algorithm] if copy is not None else wanted
        if found != wanted:
            if copy is not None and source is not None and row.digest is not None and copy[was_algorithm] == row.digest:
                return self._replace_ours(there)
            if state == states.JUDGE:
                return self._foreign(there, found)
            damaged = source is None or row.digest in {None, source[was_algorithm]}
            action = "repaired" if damaged else "replaced"
            return self._upload(there, action, was=self._hex(found), heal=True, note=self._healed())
        if mark is None:
            mark, attributes = self._source_now()
        wanted_now, theirs = self._without(attributes or Attributes(), has)
        entry_mark, lost = order.store.set_right(self.there, self.stored, wanted_now)
        same = source is None or source[was_algorithm] == row.digest
        action = "checked" if state != states.JUDGE and row.digest is not None and same else "adopted"
        digests = (
            {name: source[name] for name in order.store.digests} if source is not None else {working: wanted or b""}
        )
        if action == "checked" and row.digest is not None:
            digests.setdefault(was_algorithm, row.digest)
        kept_both = state == states.JUDGE and self.task.beside is not None
        told = f"kept both: {printable(self.key)}" if kept_both else None
        copied = Copied(action, mark, 1, lost, attributes, stored=self._elsewhere(), note=told, dropped=theirs)
        return Outcome(self.key, row.size, digests, entry_mark, read_back, copied)

    def _without(self, wanted: Attributes, has: dict[str, bytes]) -> tuple[Attributes, dict[str, bytes]]:
        """With the names that the copy is to lose, for the source has none of them: of ours those that we gave it; of
        a file that is adopted all, but those that a file server keeps there, and their values.
        """
        if "xattrs" not in self.order.source.keep:
            return wanted, {}
        if self.row.digest is not None or self.row.state != states.JUDGE:
            return replace(wanted, dropped=self.task.given - wanted.xattrs.keys()), {}
        theirs = {
            name: value
            for name, value in has.items()
            if name.startswith("user.") and name not in wanted.xattrs and not is_servers_own(name)
        }
        return replace(wanted, dropped=frozenset(theirs)), theirs

    def _elsewhere(self) -> str | None:
        return self.stored if self.stored != self.key else None

    def _replace_ours(self, there: Mark) -> tuple[Upload, dict[str, Any]]:
        """What stands there was read, and is our earlier version."""
        if self.row.size < there.size and not (self.order.tends or self.order.policy == "replace"):
            message = f"the source has become shorter than our copy: {printable(self.key)}"
            raise Refused(message, code="SF-503", path=self.key)
        return self._upload(there, "replaced", was=self._digest_was())

    def _source_now(self) -> tuple[Mark, Attributes]:
        with self.order.source.open(self.here, self.key) as reader:
            attributes, mark = reader.attributes(), reader.check()
        if self.order.source.disk.steady and fingerprint(mark.inode, mark.ctime_ns) != self.row.source:
            raise SourceChanged(f"changed while its copy was checked: {printable(self.key)}", path=self.key)
        return mark, attributes

    def _read_copy(self, algorithms: Sequence[str], there: Mark) -> tuple[dict[str, bytes], str, dict[str, bytes]]:
        """Its digests, where they were read from, and its extended attributes."""
        try:
            with StoredFile.open(self.there, self.stored) as file:
                digests = file.digest(algorithms, self.control)
                if file.check()[:2] != (file.stat.st_ino, there.size):
                    raise SourceChanged(
                        f"changed at the destination while it was read: {printable(self.key)}", path=self.key
                    )
                kind = self.order.store.disk.read_back
                return digests, "memory" if kind == "storage" and file.memory else kind, file.attributes().xattrs
        except OSError as error:
            raise self.order.store.translated(error, self.stored) from error

    def _foreign(self, there: Mark, found: bytes | None) -> tuple[Upload, dict[str, Any]]:
        """Other content stands there, and we did not put it there; but for a version that a killed run published."""
        policy = self.order.policy
        if self.order.tends and there.mtime_ns == self.row.stored_mtime_ns:
            return self._upload(there, "replaced", was=self._hex(found), heal=True)
        if policy == "refuse" or self.task.beside is not None:
            raise Refused(
                f"other content stands at the destination: {printable(self.key)}", code="SF-501", path=self.key
            )
        if policy == "keep-both":
            return self._upload(None, "copied", beside=True, note=f"kept both: {printable(self.key)}")
        if found is None:
            copy, _, _ = self._read_copy([self.order.store.digests[0]], there)
            found = copy[self.order.store.digests[0]]
        return self._upload(there, "replaced", was=self._hex(found))

    # -- what is sent --------------------------------------------------------------------------------------------------

    def _upload(
        self,
        expected: Mark | None,
        action: str,
        *,
        was: str | None = None,
        heal: bool = False,
        beside: bool = False,
        note: str | None = None,
    ) -> tuple[Upload, dict[str, Any]]:
        order, key = self.order, self.key
        named = None
        if beside:
            name = self.stored.rpartition("/")[2]
            named = lambda digest: beside_name(name, digest)  # noqa: E731
        self.ahead.begin(key)
        ahead = self.ahead
        upload = Upload(
            self.stored, lambda: ahead.open(key), expected, set_aside=order.set_aside if heal else None, named=named
        )
        begun = time.time_ns()
        upload.settled = lambda mark: self._settled(mark, begun)
        return upload, {"action": action, "was": was, "note": note}

    def _settled(self, found: Mark, begun_ns: int) -> None:
        """A time within one clock tick of the read is looked at once more, before the name is given."""
        coarse = not self.order.source.disk.steady
        if is_recent(found, begun_ns, coarse=coarse) or max(found.mtime_ns, found.ctime_ns) > begun_ns:
            head, _, name = self.key.rpartition("/")
            try:
                now = publish.mark(system.lstat(self.here.open(head), name))
            except OSError as error:
                raise self.order.source.translated(error, self.key) from error
            if now != found:
                raise SourceChanged(f"changed while it was read: {printable(self.key)}", path=self.key)

    def _symlink(self) -> tuple[Upload, dict[str, Any]] | Outcome:
        order, row = self.order, self.row
        head, _, name = self.key.rpartition("/")
        try:
            folder = self.here.open(head)
            entry, target = system.lstat(folder, name), system.read_link(folder, name)
            if not stat.S_ISLNK(entry.st_mode) or system.lstat(folder, name).st_ctime_ns != entry.st_ctime_ns:
                raise SourceChanged(f"changed while it was read: {printable(self.key)}", path=self.key)
        except OSError as error:
            raise order.source.translated(error, self.key) from error
        source = publish.mark(entry, steady=order.source.disk.steady)
        attributes = replace(order.source.attributes(entry), mode=None)
        facts = {"action": "copied", "source": source, "target": target}
        there = self._there(kind=stat.S_ISLNK)
        if there is None:
            return Upload(self.stored, target=target, attributes=attributes), facts
        dst_head, _, dst_name = self.stored.rpartition("/")
        if system.read_link(self.there.open(dst_head), dst_name) == target:
            mark, lost = order.store.set_link_right(self.there, self.stored, attributes)
            action = "adopted" if row.state == states.JUDGE else "checked"
            copied = Copied(action, source, 1, lost, attributes, target=target, stored=self._elsewhere())
            return Outcome(self.key, 0, {}, mark, "no", copied)
        if row.state == states.JUDGE and order.policy != "replace":
            raise Refused(
                f"another link stands at the destination: {printable(self.key)}", code="SF-501", path=self.key
            )
        if row.state == states.REPLACE:
            self._still(there)
        return Upload(self.stored, target=target, attributes=attributes, expected=there), {
            **facts,
            "action": "replaced",
        }

    # -- what stands there now -----------------------------------------------------------------------------------------

    def _there(self, kind: Any = stat.S_ISREG) -> Mark | None:
        head, _, name = self.stored.rpartition("/")
        try:
            entry = system.lstat(self.there.open(head), name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.order.store.translated(error, self.stored) from error
        if not kind(entry.st_mode):
            raise Refused(
                f"something of another kind stands at the destination: {printable(self.key)}",
                code="SF-502",
                path=self.key,
            )
        return publish.mark(entry, steady=self.order.store.disk.steady)

    def _healed(self) -> str:
        where = self.order.set_aside
        return f"healed: {printable(self.key)} differed at the destination; what was found is in {where}"

    def _is_still(self, there: Mark) -> bool:
        """Is what stands there what the plan saw?"""
        steady = self.order.store.disk.steady
        seen = fingerprint(there.inode, there.ctime_ns, there.size) if steady else fingerprint(0, 0, there.size)
        return seen == self.row.stored and there.mtime_ns == self.row.noted_mtime_ns

    def _still(self, there: Mark) -> None:
        if not self._is_still(there):
            raise Refused(
                f"somebody wrote this at the destination meanwhile: {printable(self.key)}", code="SF-501", path=self.key
            )

    def _digest_was(self) -> str | None:
        if self.row.digest is None:
            return None
        return f"{self.order.algorithms.get(self.row.recipe or 0, self.order.store.digests[0])}:{self.row.digest.hex()}"

    def _hex(self, digest: bytes | None) -> str | None:
        return None if digest is None else f"{self.order.store.digests[0]}:{digest.hex()}"


def beside_name(name: str, digest: bytes) -> str:
    """The name of a second version: ``NAME.scopeferry-<8 hex of the digest>.EXT``.

    >>> beside_name("a.tif", bytes(16))
    'a.scopeferry-00000000.tif'
    """
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    return f"{stem}.scopeferry-{digest[:4].hex()}{dot}{extension}"


@dataclass(frozen=True, slots=True)
class LinkItem:
    """One further name of an inode: a hard link to the copy of `leader`, made when all files are there."""

    order: Order
    key: str
    row: Row
    leader: str
    twin: int | None = None  # inode and size of what may be replaced: its change time moves with the leader's
    first: tuple[str, int, int] | None = None  # where the leader's copy stands, its size and mtime_ns; None: nowhere
    counted: bool = False  # has this run counted it before, as a file of its own?

    @property
    def revision(self) -> str:
        """Input and recipe."""
        return f"{self.row.source}:{self.leader}:{self.order.recipe}"

    @property
    def size(self) -> int:
        """Links are no bytes of work."""
        return 0

    def expected(self, there: Mark | None) -> Mark | None:
        """What may be replaced, if that is what stands there: ours, as the plan saw it."""
        if there is None or (fingerprint(there.inode, 0, there.size), there.mtime_ns) != (
            self.twin,
            self.row.stored_mtime_ns,
        ):
            return None
        return there

    @staticmethod
    def run_batch(tasks: Sequence[LinkItem], control: Control) -> list[Outcome | Failure]:
        """Make the links; one answer for each."""
        order = tasks[0].order
        stored_as = order.names.full if order.names is not None else str
        answers: list[Outcome | Failure] = []
        try:
            order.store.check_present(control)
            opened = Folders(order.store.root)
        except (OSError, ScopeferryError) as error:
            item = order.store.translated(error, order.store.root) if isinstance(error, OSError) else error
            return [Failure.of(task.key, item) for task in tasks]
        with opened as there:
            for task in tasks:
                try:
                    control.check()
                    if task.first is None:
                        raise FileNotFoundError
                    stored, leader = stored_as(task.key), task.first[0]
                    found, first = order.store.entry(stored), order.store.entry(leader)
                    if first is None or (first.size, first.mtime_ns) != task.first[1:]:
                        message = f"somebody wrote this at the destination meanwhile: {printable(leader)}"
                        raise Refused(message, code="SF-501", path=task.key)
                    mark = order.store.link(there, leader, stored, task.expected(found))
                    source = Mark(0, task.row.size, task.row.mtime_ns, 0)
                    linked = found is not None and found.inode == first.inode != 0
                    action = "copied" if not linked else "adopted" if task.row.digest is None else "checked"
                    copied = Copied(action, source, stored=stored if stored != task.key else None)
                    answers.append(Outcome(task.key, task.row.size, {}, mark, "no", copied))
                except FileNotFoundError:
                    message = f"the file it is a hard link of was not copied: {printable(task.key)}"
                    answers.append(Failure(task.key, "SF-213", message))
                except ScopeferryError as error:
                    answers.append(Failure.of(task.key, error))
                except OSError as error:
                    answers.append(Failure.of(task.key, order.store.translated(error, task.key)))
        return answers


def copy_tasks(journal: Journal, order: Order, control: Control) -> Iterator[CopyItem]:
    """The open rows of the plan as tasks, folder by folder."""
    kept_both = journal.details("as") if order.names is None and order.policy != "replace" else {}
    gave = "xattrs" in order.source.keep and journal.has_detail(GIVEN)
    for folder, row in journal.open_rows(tuple(state for state in states.OPEN if state != states.LINK)):
        if control.stopped:
            return
        beside = None
        if kept_both and row.state in {states.CHECK, *states.CHECK_ONE}:
            beside = kept_both.get((folder, row.name))
        stored = None if beside is None else os.fsdecode(beside)
        given = journal.detail(folder, row.name, GIVEN) if gave and row.digest is not None else None
        yield CopyItem(order, os.fsdecode(folder + row.name), row, stored, names_given(given))


def link_tasks(journal: Journal, order: Order, control: Control) -> Iterator[LinkItem]:
    """The hard links of the plan; one whose first name is put aside waits for the next listing."""
    for folder, row in journal.open_rows((states.LINK,)):
        if control.stopped:
            return
        leader, twin = journal.detail(folder, row.name, "leader"), journal.detail(folder, row.name, "twin")
        first = journal.row(leader)
        if first is None or not first.open:
            there = None if first is None or first.state != states.DONE else _stands(journal, order, leader, first)
            counted = journal.detail(folder, row.name, "counted") is not None
            yield LinkItem(order, os.fsdecode(folder + row.name), row, os.fsdecode(leader), twin, there, counted)


def _stands(journal: Journal, order: Order, path: bytes, row: Row) -> tuple[str, int, int]:
    """Where the copy of a row stands, its size, and its modification time as noted."""
    return (
        stored_path(journal, order.names, path),
        row.size,
        row.noted_mtime_ns,
    )


def orphan_tasks(journal: Journal, order: Order, control: Control) -> Iterator[CopyItem]:
    """Hard links whose first name was refused or failed: the next name is copied, the others wait for it."""
    heirs: dict[bytes, bytes] = {}
    for folder, row in journal.open_rows((states.LINK,)):
        if control.stopped:
            return
        path, leader = folder + row.name, journal.detail(folder, row.name, "leader")
        first = journal.row(leader)
        if leader in heirs:
            journal.settle([(folder, row, {"leader": heirs[leader]})])
        elif first is not None and first.state in {states.FAILED, states.CONFLICT}:
            heirs[leader] = path
            stands = journal.detail(folder, row.name, "twin") is not None
            ours = row.digest is not None
            state = states.CHECK if ours and stands else states.JUDGE if ours or stands else states.COPY
            heir = row._replace(kind=states.FILE, state=state)
            journal.settle([(folder, heir, {"leader": None, "twin": None})])
            yield CopyItem(order, os.fsdecode(path), heir)


@dataclass(slots=True)
class CopyLedger:
    """Record first, then journal: one transaction for each call."""

    journal: Journal
    record: Record
    order: Order
    run: str = ""
    changed: int = 0
    moving: int = 0
    stopped: int = 0  # items that stay open because of what stops the run, and not because they moved
    had_losses: bool = False
    had_said: bool | None = None
    further: list[str] | None = None  # algorithms that the journal knows beside the working one
    gave: bool | None = None  # does it know an item that was given extended attributes?
    moves: bool | None = None  # does the journal know an item that stands under another name than its own?

    def settle(self, results: Sequence[Result]) -> list[Event]:
        """Write down what became of these tasks; the events that tell it."""
        events: list[Event] = []
        rows: list[tuple[bytes, Row, dict[str, Any]]] = []
        folders: set[bytes] = set()
        now = time.time()
        for task, answer in results:
            assert isinstance(task, CopyItem | LinkItem)
            raw = os.fsencode(task.key)
            folder = raw[: len(raw) - len(task.row.name)]
            if isinstance(answer, Failure):
                events.append(self._failed(task, answer))
                self.changed += answer.code == "SF-201"  # put aside: the next listing looks at it again
                state = _state_after(answer)
                if answer.code in WROTE:
                    folders.add(folder)
                self.moving += answer.code == "SF-201"
                if state is not None:
                    rows.append((folder, task.row._replace(state=state), {}))
                else:
                    self.stopped += answer.code != "SF-201"
                continue
            self.changed += 1
            folders.add(folder)
            rows.append((folder, *self._done(task, answer, now)))
            payload: Copied = answer.payload
            events.append(
                Event("done", self.run, task.key, 1, answer.size, _told(payload, answer.read_back, task), now)
            )
        self.record.flush()
        self.journal.touch(folders)
        if rows:
            self.journal.settle(rows)
        self.journal.commit()
        return events

    def _done(self, task: CopyItem | LinkItem, answer: Outcome, now: float) -> tuple[Row, dict[str, Any]]:
        copied: Copied = answer.payload
        order, row, mark = self.order, task.row, answer.entry
        source, steady = copied.source, order.source.disk.steady
        linked = isinstance(task, LinkItem)
        digest, digests = answer.digests.get(order.store.digests[0]), answer.digests
        details: dict[str, Any] = {}
        if isinstance(task, LinkItem):
            details["counted"] = None
            digest, digests = self._leader_digest(task)
        working = order.store.digests[0]
        if copied.action != "checked":  # a further digest does not outlive the bytes it was taken of
            details |= {f"digest:{name}": None for name in self._further()}
        elif working in self._further():
            details[f"digest:{working}"] = None
        details |= {f"digest:{name}": found for name, found in digests.items() if name != working}
        if self.had_said is None:
            self.had_said = self.journal.has_detail(SAID)
        if self.had_said:
            details[SAID] = None
        if copied.lost or self.had_losses:
            details["lost"] = ",".join(copied.lost) or None
        if self.gave is None:
            self.gave = self.journal.has_detail(GIVEN)
        given = copied.attributes.xattrs if copied.attributes is not None else {}
        if given or self.gave:
            details[GIVEN] = given_names(given)
            self.gave = True
        if self.moves is None:
            self.moves = self.journal.has_detail("as")
        if copied.stored is not None:
            details["as"] = os.fsencode(copied.stored)
            self.moves = True
        elif self.moves:
            details["as"] = None
        stored = (
            fingerprint(mark.inode, mark.ctime_ns, mark.size)
            if order.store.disk.steady
            else fingerprint(0, 0, mark.size)
        )
        new = Row(
            row.name,
            row.kind,
            states.DONE,
            source.size if not linked else row.size,
            source.mtime_ns,
            row.source if linked else fingerprint(source.inode, source.ctime_ns) if steady else fingerprint(0, 0),
            stored,
            None if mark.mtime_ns == source.mtime_ns else mark.mtime_ns,
            digest,
            order.recipe,
        )
        self._write_line(task, answer, copied, digests, now)
        return new, details

    def _further(self) -> list[str]:
        """The algorithms that a row may have a digest by beside its own."""
        if self.further is None:
            known = self.journal.further_algorithms()
            used = [name for name in self.journal.manifest_algorithms() if name != self.order.store.digests[0]]
            self.further = list(dict.fromkeys((*known, *used)))
        return self.further

    def _leader_digest(self, task: LinkItem) -> tuple[bytes | None, dict[str, bytes]]:
        leader = self.journal.row(os.fsencode(task.leader))
        digest = leader.digest if leader is not None else None
        digests = {self.order.store.digests[0]: digest} if digest else {}
        head, _, name = os.fsencode(task.leader).rpartition(b"/")
        for algorithm in dict.fromkeys((*self.order.store.digests[1:], *self._further())):
            found = self.journal.detail(head + b"/" if head else b"", name, f"digest:{algorithm}")
            if found:
                digests[algorithm] = found
        return digest, digests

    def _write_line(
        self, task: CopyItem | LinkItem, answer: Outcome, copied: Copied, digests: dict[str, bytes], now: float
    ) -> None:
        kind = "hardlink" if isinstance(task, LinkItem) else "link" if copied.target is not None else "file"
        more = ""
        attributes = copied.attributes
        if attributes is not None:
            if attributes.mode is not None:
                more += f', "mode": {attributes.mode}'
            if attributes.xattrs:
                more += f', "xattrs": {json.dumps(xattrs_json(attributes.xattrs))}'
        if copied.dropped:
            more += f', "xattrs_were": {json.dumps(xattrs_json(copied.dropped))}'
        for key, value in (("was", copied.was), ("target", copied.target), ("stored", copied.stored)):
            if value is not None:
                more += f', "{key}": {json.dumps(value)}'
        if copied.lost:
            more += f', "lost": {json.dumps(copied.lost)}'
        if copied.attempts > 1:
            more += f', "attempts": {copied.attempts}'
        if isinstance(task, LinkItem):
            more += f', "leader": {json.dumps(task.leader)}'
        if copied.aside:
            self.record.entry(task.key, kind, "set_aside", was=copied.was, set_aside=copied.aside, at=round(now, 3))
        found = ", ".join(f'"{name}": "{digest.hex()}"' for name, digest in digests.items())
        size = task.row.size if isinstance(task, LinkItem) else copied.source.size
        self.record.add(
            f'{{{path_json(task.key)}, "kind": "{kind}", "size": {size}, "mtime_ns": {copied.source.mtime_ns}, '
            f'"digest": {{{found}}}, "action": "{copied.action}", "read_back": "{answer.read_back}", '
            f'"at": {now:.3f}{more}}}'
        )

    def _failed(self, task: CopyItem | LinkItem, failure: Failure) -> Event:
        if _state_after(failure) is not None or failure.code == "SF-201":
            kind = {states.SYMLINK: "link", states.HARDLINK: "hardlink"}.get(task.row.kind, "file")
            problem = {"code": failure.code, "message": failure.message}
            self.record.entry(task.key, kind, action_after(failure.code), size=task.row.size, problem=problem)
        data = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        return Event("failed", self.run, task.key, 1, task.row.size, data)


def _state_after(failure: Failure) -> int | None:
    """The state of a row after a failure; None: it stays open, for this run or the next."""
    if failure.code in {"SF-201", "SF-130", "SF-325", "SF-313", "SF-322", "SF-323", "SF-303", "SF-301", "SF-302"}:
        return None
    return states.CONFLICT if failure.code.startswith("SF-5") else states.FAILED


def _told(copied: Copied, read_back: str, task: CopyItem | LinkItem) -> dict[str, Any]:
    told: dict[str, Any] = {"action": copied.action, "read_back": read_back}
    if isinstance(task, LinkItem):
        told["kind"] = "hardlink"
        if task.counted:
            told["again"] = True
    elif copied.target is not None:
        told["kind"] = "link"
    if copied.attempts > 1:
        told["attempts"] = copied.attempts
    if copied.lost:
        told["lost"] = copied.lost
    if copied.note:
        told["note"] = copied.note
    return told
