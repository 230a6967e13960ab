"""Is it over? Decided from evidence, in two questions: does anything say *running*, and what says *finished*? Pure.

What says running wins over all that says finished; only a declaration overrules it. What says running because something
is not right (a torn shard, a temporary name, a promise of the metadata) is *dead* once nobody holds it and nothing has
changed for long enough, and then says *aborted*. So a killed writer never keeps a run for ever, and a pause is never an
end. All that was seen in one look is one value, `Facts`; `decide` makes a `Decision` of it and remembers nothing, so a
later change revokes what was decided. It knows no format: what a profile's rules found out is passed in as evidence.

>>> rules = parse(["auto"])
>>> seen = Facts(now_s=1e9, quiet_s=3.0, hierarchy=True, expected=8000, there=7960)
>>> decide(rules, seen).state, to_end(decide(rules, seen))
('running', "file 'complete', or all 8,000 chunks (7,960 so far) and 10 min quiet")
>>> found = decide(rules, replace(seen, markers=(Marker("complete", seen_s=1e9 - 5),), walk_begun_s=1e9 - 2))
>>> found.state, found.ends, found.evidence[0].kind, found.evidence[0].detail
('finished', True, 'marker', 'complete')
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from scopeferry.sources.complete import NAME as COMPLETE
from scopeferry.sources.complete import ArrayEnd, Complete, keys, read_complete
from scopeferry.sources.finish_awaited import alternatives
from scopeferry.sources.finish_facts import (
    ABORTED,
    FINISHED,
    KINDS,
    OPEN_S,
    RUNNING,
    UNKNOWN,
    Evidence,
    Facts,
    Listed,
    Marker,
    Quiet,
    some,
    span,
    unchanged,
)
from scopeferry.sources.finish_rules import (
    ALONE,
    Rule,
    Rules,
    find_markers,
    grid_wait_s,
    handle_is_enough,
    handle_wait_s,
    parse,
    says,
    walked_after,
)

__all__ = [
    "ABORTED", "COMPLETE", "FINISHED", "KINDS", "RUNNING", "UNKNOWN", "ArrayEnd", "Complete", "Decision", "Evidence",
    "Facts", "Listed", "Marker", "Quiet", "Rule", "Rules", "decide", "find_markers", "keys", "parse", "read_complete",
    "replace", "says", "span", "to_end",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """How it stands. ``state`` is running exactly while it does not end; ``evidence`` says why, the strongest first;
    ``awaited``: what has to come about, all of it, never empty while it does not end; ``weak``: quiet alone ended it.
    ``notes``: what a person should know beside it; ``overruled``: what said running when somebody declared it finished.
    """

    state: str
    ends: bool
    evidence: tuple[Evidence, ...]
    awaited: tuple[str, ...] = ()
    weak: bool = False
    notes: tuple[str, ...] = ()
    overruled: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The state for somebody who looks once: unknown where nothing says running and nothing ends it."""
        told = self.ends or any(one.verdict == RUNNING for one in self.evidence)
        return self.state if told else UNKNOWN


class _Sign(NamedTuple):
    """Something that says running, or, being dead, aborted."""

    evidence: Evidence
    awaited: str = ""


def _sign(facts: Facts, kind: str, detail: str, awaited: str) -> _Sign:
    return _Sign(Evidence(kind, RUNNING, detail, facts.now_s), awaited)


def decide(rules: Rules, facts: Facts) -> Decision:
    """Is it over? Any one of the rules ends it, unless something says running."""
    signs = [*_signs(rules, facts)]
    running = [sign for sign in signs if sign.evidence.verdict == RUNNING]
    said = [*_said(rules, facts)]
    notes = _notes(facts)
    declared = [one for one in said if one.kind == "declared"]
    if declared:
        aborted = [one for one in said if one.verdict == ABORTED] + _short_at_end(facts)
        overruled = tuple(sign.evidence.detail for sign in signs)
        state = ABORTED if aborted else FINISHED
        return Decision(state, True, _ranked(aborted or said), notes=notes, overruled=overruled)
    if running:
        awaited = dict.fromkeys(sign.awaited for sign in running if sign.awaited)
        last = alternatives(rules, facts)
        return Decision(RUNNING, False, (*_ranked([sign.evidence for sign in running]), *_ranked(said)),
                        (*awaited, last), notes=notes)  # fmt: skip
    aborted = [one for one in said if one.verdict == ABORTED] + [sign.evidence for sign in signs]
    if aborted:
        return Decision(ABORTED, True, _ranked(aborted), notes=notes)
    enders = [one for one in said if _ends(one, rules, facts)]
    if enders:
        return Decision(FINISHED, True, _ranked(said), weak=all(one.kind == "quiet" for one in enders), notes=notes)
    if rules.auto and facts.begun and facts.quiet_s >= facts.way_out_s:
        quiet = Evidence("quiet", FINISHED, unchanged(facts), facts.now_s - facts.quiet_s)
        return Decision(UNKNOWN, True, _ranked([*said, quiet]), notes=notes)
    return Decision(RUNNING, False, _ranked(said), (alternatives(rules, facts),), notes=notes)


def to_end(decision: Decision) -> str:
    """What is awaited, in one line; empty where it is over."""
    return "; ".join(decision.awaited)


def _ranked(evidence: Iterable[Evidence]) -> tuple[Evidence, ...]:
    return tuple(sorted(evidence, key=lambda one: KINDS.index(one.kind)))


def _notes(facts: Facts) -> tuple[str, ...]:
    old = [marker.path for marker in facts.markers if marker.left_over]
    if facts.complete is not None and not _complete_counts(facts) and COMPLETE not in old:
        old.append(COMPLETE)
    return tuple(f"{path} was left by an earlier acquisition: it says nothing" for path in old)


# -- what says running -------------------------------------------------------------------------------------------------


def _signs(rules: Rules, facts: Facts) -> Iterator[_Sign]:
    """In the order of the table; those that are dead say aborted."""
    if not facts.listed:
        yield _sign(facts, "structural", "not everything is listed yet", "a first full listing")
    for listed in facts.manifests:
        if not listed.whole:
            yield _sign(facts, "declared", f"{listed.file} is being written", f"{listed.file} to become whole")
        elif listed.there and listed.absent:
            detail = f"{len(listed.absent):,} of {listed.total:,} files of {listed.file} absent: {listed.absent[0]}"
            yield _sign(facts, "declared", detail, f"{len(listed.absent):,} more files of {listed.file}")
    for one in facts.extra:
        if one.verdict == RUNNING:
            yield _Sign(one, "" if facts.extra_awaited else f"the end of this: {one.detail}")
    if facts.locks:
        yield _sign(facts, "handle", f"locked: {some(facts.locks)}", f"{some(facts.locks)} to be unlocked")
    if facts.writer_alive:
        yield _sign(facts, "handle", f"process {facts.writer_pid} lives", f"process {facts.writer_pid} to end")
    opened = [path for path, age_s in facts.open_files.items() if age_s <= OPEN_S]
    if opened:
        yield _sign(facts, "handle", f"open for writing: {some(opened)}", f"{some(opened)} to be closed")
    yield from _not_right(facts)
    beside_marker = any(one.kind == "marker" for one in _said(rules, facts))
    if facts.quiet_s < facts.settle_s and not beside_marker:
        changed = f"{facts.newest} changed" if facts.newest else "changed"
        yield _Sign(Evidence("quiet", RUNNING, f"{changed} {span(facts.quiet_s)} ago", facts.now_s - facts.quiet_s))


def _not_right(facts: Facts) -> Iterator[_Sign]:
    """What says running until it is right, or dead."""
    alive = bool(facts.locks or facts.writer_alive)
    for what, paths in (
        ("shard without valid index", facts.torn),
        ("temporary name", facts.temporary),
        ("metadata not whole", facts.unparsable),
    ):
        if paths:
            opened = bool(facts.held) and any(path in facts.held for path in paths)
            awaited = f"{some(paths)} to go" if paths is facts.temporary else f"{some(paths)} to become whole"
            if opened and facts.quiet_s >= facts.dead_s:
                yield _sign(facts, "structural", f"{what}, perhaps held by somebody: {some(paths)}", awaited)
            else:
                yield _until_dead(facts, f"{what}: {some(paths)}", awaited, facts.dead_s, alive=alive)
    if facts.strays:
        what = f"temporary name: {some(facts.strays)}"
        awaited = f"{some(facts.strays)} to go, or to be left alone for {span(facts.settle_s)}"
        yield _sign(facts, "structural", what, awaited)
    if facts.promised:
        what = f"promised by the metadata, not there: {some(facts.promised)}"
        yield _until_dead(facts, what, f"{some(facts.promised)} to appear", facts.way_out_s, alive=alive)
    if facts.short:
        absent, total = facts.short
        what = f"{absent:,} of {total:,} chunks absent"
        yield _until_dead(facts, what, f"{absent:,} more chunks", facts.way_out_s, alive=alive)


def _until_dead(facts: Facts, detail: str, awaited: str, dead_s: float, *, alive: bool) -> _Sign:
    if not alive and facts.listed and facts.quiet_s >= dead_s:
        return _Sign(Evidence("structural", ABORTED, f"{detail}; {unchanged(facts)}", facts.now_s))
    way_out = "" if alive else f" (or {span(dead_s)} quiet: aborted)"
    return _sign(facts, "structural", detail, awaited + way_out)


def _short_at_end(facts: Facts) -> list[Evidence]:
    if not facts.short:
        return []
    absent, total = facts.short
    return [Evidence("structural", ABORTED, f"{absent:,} of {total:,} chunks absent at the end", facts.now_s)]


# -- what says finished ------------------------------------------------------------------------------------------------


def _said(rules: Rules, facts: Facts) -> Iterator[Evidence]:
    """All that says finished (or, explicitly, aborted), whether that is enough or not."""
    if rules.has("now") or facts.declared_by:
        yield Evidence("declared", FINISHED, facts.declared_by or "--finish now", facts.now_s)
    if facts.complete is not None and _complete_counts(facts):
        yield Evidence("declared", facts.complete.state, COMPLETE, facts.now_s)
    for rule in rules.given:
        if rule.name not in ALONE and rule.name != "profile":
            found = says(rule, facts)
            if found is not None and (rule.name != "manifest" or all(one.satisfied for one in facts.manifests)):
                yield found
    for name, on in (("auto", rules.auto), ("writer", rules.writer), ("grid", True)):
        found = says(Rule(name), facts) if on else None
        if found is not None:
            yield found
    yield from (one for one in facts.extra if one.verdict != RUNNING)


def _complete_counts(facts: Facts) -> bool:
    """It is written last of all, after every lock was given back: beside a lock that is held it is an older one."""
    return not (facts.complete_left_over or facts.locks)


def _ends(one: Evidence, rules: Rules, facts: Facts) -> bool:
    """Is this evidence enough, where nothing says running and nobody has declared it?"""
    if not facts.listed or one.verdict != FINISHED:
        return False
    if one.kind == "marker":
        return walked_after(one.at, facts)
    if one.kind == "quiet":
        return True
    if one in facts.extra:
        return facts.quiet_s >= facts.settle_s
    if one.kind == "handle":
        return facts.quiet_s >= handle_wait_s(facts) and handle_is_enough(facts)
    return rules.grid and facts.quiet_s >= grid_wait_s(rules, facts)
