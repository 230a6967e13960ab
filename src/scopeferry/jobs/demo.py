"""`demo`: a microscope writes a plate and a live copy runs beside it; the copier is killed, a bit flipped, and so on.

The steps are a literal list. Each runs real commands, and makes checks; the first check that fails ends the demo. What
happens when goes by frames, not by a clock. What a check says is the same in every demo of a seed; numbers that differ
are kept apart, as measured.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scopeferry.errors import Failed, NoSpace, Refused, ScopeferryError, UsageError
from scopeferry.jobs.result import Result
from scopeferry.kernel.run import BATCH_BYTES, BATCH_ITEMS
from scopeferry.kernel.task import Control
from scopeferry.logs import quoted
from scopeferry.testing.microscope import FRAMES, MARKER, NEEDS_BYTES, Frame, Microscope, frames_in
from scopeferry.testing.runs import Seen, contents, look
from scopeferry.testing.slow_writer import WriterFailed
from scopeferry.testing.stage import OUTPUT, STATE, Broken, Running, Stage, is_part
from scopeferry.testing.trees import flip

SOURCE, COPY = "instrument/plate.ome.zarr", "archive/plate.ome.zarr"
FOLDERS = ("instrument", "archive", STATE, OUTPUT)
WORKERS = 2
LIVE = ("live", SOURCE, COPY, "--workers", str(WORKERS))
RATE = 12.0  # frames/s, times the speed
LOOK_AT, KILL_AT, AGAIN_AT = 8, 24, 36  # frames; at 24 the shards are whole
DROPPED, DARK = 48, 60  # the numbers of two frames, from 1
KILL_AFTER = 8  # shards at the destination
LIMIT = 500_000  # bytes/s of the copy that is killed, times the speed: slower than the microscope
MAX_LIMIT = 1_000_000  # or there is no middle to be killed in
MAX_SPEED = 1000
ROOM_BYTES = 2 * NEEDS_BYTES + (8 << 20)
FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(slots=True)
class Play(Stage):
    """What the steps know of each other."""

    seed: int = 0
    speed: float = 1.0
    microscope: Microscope | None = None
    copier: Running | None = None
    truth: dict[str, str] = field(default_factory=dict)
    at_kill: dict[str, Seen] = field(default_factory=dict)
    damaged: str = ""
    tree_digest: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    def found(self) -> Microscope:
        """The microscope. Raises LookupError where there is none."""
        if self.microscope is None:
            raise LookupError("no microscope")
        return self.microscope

    def take(self, until: int) -> None:
        """Let it take frames, as fast as it does, until it has taken so many."""
        microscope = self.found()
        while microscope.number < until:
            self.control.check()
            began, number = time.monotonic(), microscope.number + 1
            microscope.take(drop=number == DROPPED, dark=number == DARK)
            longest = self.measured.get("longest_frame_s", 0.0)
            self.measured["longest_frame_s"] = max(longest, round(time.monotonic() - began, 4))
            self.control.sleep(max(0.0, 1 / (RATE * self.speed) - (time.monotonic() - began)))

    def grow(self, enough: Callable[[], bool]) -> Running:
        """Wait until the copy has grown so far, or the copier has ended; the copier. Raises LookupError for none."""
        if (copier := self.copier) is None:
            raise LookupError("no copier")
        self.wait("the copy has not grown", lambda: enough() or copier.ended)
        return copier

    def taken(self) -> dict[Frame, bytes]:
        """The frames that were taken, as they were to be."""
        microscope = self.found()
        return {frame: microscope.field.pixels(frame) for frame in microscope.taken}


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: its name, the sentence that is shown before, and what does and checks it."""

    name: str
    sentence: str
    act: Callable[[Play], None]


# -- the steps ---------------------------------------------------------------------------------------------------------


def _begin(play: Play) -> None:
    limit = min(LIMIT * play.speed, MAX_LIMIT)
    play.copier = play.start(*LIVE, "--limit", f"{limit / 1e6:g}MB")
    play.microscope = play.open.enter_context(Microscope(play.at(SOURCE), seed=play.seed))
    play.microscope.describe()
    play.take(LOOK_AT)
    ran = play.run("inspect", SOURCE, "--json")
    written = sum(array["written"] for array in ran.envelope.get("arrays", ()))
    running = ran.code == 6 and ran.envelope.get("state") == "running" and written == LOOK_AT
    running = running and bool(ran.envelope.get("evidence")) and bool(ran.envelope.get("awaited"))
    play.check(
        "inspect runs",
        f"it ends with 6: running, {LOOK_AT} frames so far, and it names why and what is awaited",
        running,
    )
    wanted = play.taken()
    play.grow(lambda: len(frames_in(play.at(COPY))) >= LOOK_AT)
    same = frames_in(play.at(COPY)) == wanted
    play.check("opens", f"the copy opens while it grows, and its {LOOK_AT} frames are those that were taken", same)


def _kill(play: Play) -> None:
    play.take(KILL_AT)
    copier = play.grow(lambda: play.arrived("c") >= KILL_AFTER)
    early = copier.ended
    copier.child.kill()
    play.end(copier)
    play.at_kill, source = play.copy(), play.source()
    play.take(AGAIN_AT)
    shards, all_shards = (sum("/c/" in path and seen.is_file for path, seen in found.items())
                          for found in (_named(play.at_kill), play.source()))  # fmt: skip
    play.measured["shards_at_kill"] = shards
    play.say(f"     {shards} of the {all_shards} shards so far are at the destination")
    middle = not early and KILL_AFTER <= shards < all_shards
    play.check("killed", "it died behind a slow link: some shards have arrived, and not all", middle)
    torn = [path for path, seen in _named(play.at_kill).items() if path not in source or seen[:2] != source[path][:2]]
    play.check("nothing torn", "no file is torn: what bears its final name equals the source", not torn)


def _go_on(play: Play) -> None:
    play.copier = play.start(*LIVE, "--json")
    play.take(FRAMES)
    microscope = play.found()
    microscope.finish()
    made = play.source()
    play.check("made", f"{len(microscope.taken)} frames are there as they were to be", _made(play))
    play.truth = contents(made)
    ran = play.end(play.copier)
    copy, sent = play.copy(), int(ran.envelope.get("bytes", -1))
    targets = ran.envelope.get("targets", ())
    why: dict[str, Any] = next((one for target in targets for one in target["evidence"] or ()), {})
    play.check("finished", "it ends by itself, with 0", ran.code == 0)
    named = (why.get("verdict"), why.get("detail")) == ("finished", MARKER)
    play.check("evidence", f"it names the evidence that the acquisition is over: {MARKER}", named)
    play.check("complete", "the copy is the source: every name and byte, nothing else", _whole(play, copy))
    had = _named(play.at_kill)
    parts = {path: seen for path, seen in play.at_kill.items() if path not in had}
    once = bool(had) and play.untouched(had, copy) and 0 <= sent <= _bytes(copy) - _bytes(had)
    play.check("sent once", "no file that had arrived was sent again", once)
    twice = max(0, _bytes(had) + _bytes(parts) + sent - _bytes(copy))
    play.measured["sent_twice_bytes"] = twice
    in_flight = twice <= WORKERS * BATCH_BYTES and len(parts) <= WORKERS * BATCH_ITEMS
    play.check("sent twice", f"sent twice was at most what was in flight: {WORKERS} batches", in_flight)


def _gaps(play: Play) -> None:
    microscope = play.found()
    ran = play.run("inspect", COPY, "--json")
    arrays = ran.envelope.get("arrays", ())
    missing = [(array["path"], array["missing"], array["missing_ranges"]) for array in arrays if array["missing"]]
    empty = [(array["path"], array["empty"]) for array in arrays if array["empty"]]
    dropped, dark = microscope.dropped[0], microscope.dark[0]
    play.check(
        "missing", f"missing 1: {dropped}", ran.code == 0 and missing == [(dropped.array, 1, [f"t {dropped.time}"])]
    )
    play.check("empty", f"empty 1, which is not missing: {dark}", empty == [(dark.array, 1)])


def _flip(play: Play) -> None:
    shards = sorted({frame.shard for frame in play.found().taken})
    play.damaged = shards[(31 * play.seed + 17) % len(shards)]
    before = play.copy()[play.damaged]
    flip(play.at(f"{COPY}/{play.damaged}"), before.size // 2 + play.seed % 1000, bit=1 << play.seed % 8)
    after = play.copy()[play.damaged]
    unseen = after.content != before.content and (after.size, after.mtime_ns) == (before.size, before.mtime_ns)
    play.check("flipped", f"{play.damaged} has other bytes, and the same size and time", unseen)


def _refuse(play: Play) -> None:
    before = play.both()
    ran = play.run("clean", SOURCE, "--copy", COPY)
    play.check("clean refuses", "it ends with 5", ran.code == 5)
    play.check("clean touches nothing", "source and copy are as before", play.both() == before)


def _find(play: Play) -> None:
    ran = play.run("verify", COPY, "--json")
    play.check("verify finds", "it ends with 4", ran.code == 4)
    named = ran.problems == [("SF-401", play.damaged)]
    play.check("verify names", f"it names {play.damaged}, and nothing else", named)


def _heal(play: Play) -> None:
    before = play.copy()
    damaged = before.pop(play.damaged)
    ran = play.run("repair", SOURCE, COPY, "--json")
    after = play.copy()
    play.check("repair ends", "it ends with 0", ran.code == 0)
    play.check("repair heals", "the copy is the source again", _whole(play, after))
    alone = ran.envelope.get("repaired") == 1 and play.untouched(before, after)
    play.check("repair sends one", "it sent that file, and touched no other", alone)
    aside = contents(look(play.at(f"{COPY}.scopeferry/set_aside"))).values()
    play.check("damage kept", "the damaged file is kept, in set_aside", damaged.content in aside)


def _agree(play: Play) -> None:
    ran = play.run("verify", COPY, "--json")
    play.tree_digest = str(ran.envelope.get("tree_digest", ""))
    play.check("verify agrees", "it ends with 0, and names nothing", ran.code == 0 and not ran.problems)


def _plan(play: Play) -> None:
    before = play.both()
    ran = play.run("clean", SOURCE, "--copy", COPY)
    looked_at = [line[:20].split(maxsplit=1) for line in ran.out.splitlines()]
    holds = bool(looked_at) and all(line[0] == "ok" for line in looked_at)
    play.say(f"     what must hold: {', '.join(line[-1].strip() for line in looked_at)}")
    play.check("clean plans", "it ends with 0, and each of these holds", ran.code == 0 and holds)
    kept = play.both() == before and contents(before[0]) == play.truth
    play.check("clean deletes nothing", "source and copy are all there: only --yes deletes", kept)


STEPS = (
    Step(
        "begin", f"A microscope writes a plate: 6 wells, {FRAMES} frames. Its copy is begun before it is there.", _begin
    ),
    Step("kill", f"The link is slower than the microscope; after frame {KILL_AT} the copier is killed.", _kill),
    Step(
        "go on",
        f"The same command goes on; the camera drops frame {DROPPED}, frame {DARK} is dark and not stored.",
        _go_on,
    ),
    Step("gaps", "Which frames are not there, and why?", _gaps),
    Step(
        "flip",
        "A bit of the copy flips, size and time are put back. (A second run would notice on a local disk, for the"
        " change time moved; what follows needs no such hint: it reads.)",
        _flip,
    ),
    Step("refuse", "May the original be freed now? clean reads the copy first.", _refuse),
    Step("find", "verify reads the whole copy; it needs no source.", _find),
    Step("heal", "repair sends what is wrong once more, if the source is still what was recorded.", _heal),
    Step("agree", "verify reads all of it again.", _agree),
    Step("plan", "clean reads the copy again; this time nothing stands against it.", _plan),
)


def _named(found: Mapping[str, Seen]) -> dict[str, Seen]:
    """What bears its final name."""
    return {path: seen for path, seen in found.items() if not is_part(path)}


def _made(play: Play) -> bool:
    """Does the source hold what the microscope has taken?"""
    return frames_in(play.at(SOURCE)) == play.taken()


def _whole(play: Play, copy: Mapping[str, Seen]) -> bool:
    return bool(play.truth) and contents(copy) == play.truth


def _bytes(found: Mapping[str, Seen]) -> int:
    """Bytes in files, those with two names once."""
    return sum({(seen.inode, seen.content): seen.size for seen in found.values() if seen.is_file}.values())


# -- the demo ----------------------------------------------------------------------------------------------------------


def demo(
    to: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    speed: float = 1.0,
    say: Callable[[str], object] | None = None,
    control: Control | None = None,
    steps: Sequence[Step] = STEPS,
) -> Result:
    """Show and check it all below an empty folder (a new temporary one if `to` is None), which is kept.

    `say` receives each line that is shown; `speed` multiplies the rate of the microscope. A failed check ends
    the demo: exit code 1, SF-306. ``details`` holds ``checks``, equal in every demo of a seed, and ``measured``, which
    is not. If it is stopped, or the disk is full, what it has made is removed.

    Raises UsageError for a speed or folder that cannot be, Refused (SF-505) for a folder that is not empty, NoSpace
    (SF-311, SF-313), Failed (SF-301), and the reason why `control` was stopped.
    """
    if not 0 < speed <= MAX_SPEED:
        raise UsageError(f"--speed {speed:g} is not above 0 and at most {MAX_SPEED}", code="SF-105")
    folder, made = _folder(to)
    result, began = Result("demo", destination=folder), time.monotonic()
    play = Play(folder, SOURCE, COPY, say or _unheard, control or Control(), seed=seed, speed=speed)
    try:
        with play.open:
            _run(play, steps)
    except Broken as error:
        result.add(error.code, "", str(error), error.hint)
    except (ScopeferryError, OSError, KeyboardInterrupt) as error:
        _remove(folder, made=made)
        if isinstance(error, OSError):
            raise _system_error(error, folder) from error
        raise
    result.elapsed_s, result.tree_digest = time.monotonic() - began, play.tree_digest
    result.details.update(seed=seed, checks=[asdict(check) for check in play.checks], measured=play.measured)
    try_it = f"cd {quoted(folder)}, change what you like, then scopeferry verify {COPY} {SOURCE}"
    result.details["verdict"] = f"all {len(play.checks)} checks hold   to fool it: {try_it}"
    return result


def _run(play: Play, steps: Sequence[Step]) -> None:
    play.say(f"in {play.folder}:")
    for name in FOLDERS:
        os.mkdir(play.at(name))
    seconds = play.measured["seconds"] = {}
    for place, step in enumerate(steps, 1):
        play.control.check()
        play.say(f"{place}. {step.sentence}")
        began = time.monotonic()
        try:
            step.act(play)
        except (LookupError, FileNotFoundError) as error:
            raise Broken(f"step '{step.name}' found nothing to work on: {error}") from error
        except WriterFailed as error:
            play.control.check()  # Ctrl-C ends it too
            for number in FULL:
                if f"[Errno {number}]" in str(error):
                    raise OSError(number, os.strerror(number)) from error
            raise Broken(f"the microscope failed in step '{step.name}': {error}") from error
        seconds[step.name] = round(time.monotonic() - began, 3)


def _unheard(_line: str) -> None:
    pass


def _folder(to: str | os.PathLike[str] | None) -> tuple[str, bool]:
    """An empty folder with room for it all, and whether it was made here."""
    folder = os.path.abspath(tempfile.gettempdir() if to is None else to)
    made = to is None or not os.path.lexists(folder)
    where = os.path.dirname(folder) if made and to is not None else folder
    if not os.path.isdir(where):
        code = "SF-112" if os.path.lexists(where) else "SF-102"
        raise UsageError(f"not a folder: {where}", code=code, path=where)
    try:
        if not made and os.listdir(folder):
            raise Refused(f"not empty: {folder}", code="SF-505", path=folder)
        free = shutil.disk_usage(where).free
        if free < ROOM_BYTES:
            need = f"the demo needs {ROOM_BYTES / 1e6:.0f} MB, {free / 1e6:.0f} MB are free in {where}"
            raise NoSpace(need, code="SF-311", path=where)
        if to is None:
            return tempfile.mkdtemp(prefix="scopeferry-demo-"), True
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise _system_error(error, folder) from error
    return folder, made


def _system_error(error: OSError, folder: str) -> Failed | NoSpace:
    if error.errno in FULL:
        return NoSpace(f"no room for the demo in {folder}", path=folder)
    return Failed(f"{error.filename or folder}: {error.strerror}", code="SF-301", path=folder)


def _remove(folder: str, *, made: bool) -> None:
    """Take away what the demo has made."""
    for name in FOLDERS:
        shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
    if made:
        try:
            os.rmdir(folder)
        except OSError:
            pass
