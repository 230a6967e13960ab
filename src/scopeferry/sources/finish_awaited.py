"""What would end a run that goes on, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from scopeferry.sources.finish_facts import Facts, some, span
from scopeferry.sources.finish_rules import (
    STEM,
    Rules,
    grid_wait_s,
    handle_is_enough,
    handle_wait_s,
    says,
    walked_after,
)


def alternatives(rules: Rules, facts: Facts) -> str:
    """What would end it, any one of these; never empty."""
    any_of = [*_manifest_awaited(rules, facts), *_marker_awaited(rules, facts), *_writer_awaited(rules, facts)]
    grid = [*_grid_awaited(rules, facts)]
    any_of += [*grid, *facts.extra_awaited]
    if not facts.extra_awaited:
        any_of += [f"the evidence of {rule}" for rule in rules.others]
    if rules.quiet_s is not None:
        any_of.append(f"{span(max(rules.quiet_s, facts.settle_s))} quiet")
    if rules.auto and not grid:
        any_of.append(_way_out_awaited(facts))
    return ", or ".join(dict.fromkeys(any_of)) or "a declaration (--finish now)"


def _manifest_awaited(rules: Rules, facts: Facts) -> Iterator[str]:
    for file in rules.values("manifest"):
        there = any(one.file == file and one.there and one.total for one in facts.manifests)
        yield f"all files of {file}" if there else f"file '{file}' and all that it lists"


def _marker_awaited(rules: Rules, facts: Facts) -> Iterator[str]:
    for rule in rules.given:
        if rule.name not in {"auto", "marker"}:
            continue
        found = says(rule, facts)
        if found is not None and not walked_after(found.at, facts):
            flying = f" ({facts.in_flight:,} in flight)" if facts.in_flight else ""
            yield f"a full walk after '{found.detail}' that finds nothing new{flying}"
        elif found is None:
            old = any(marker.rule == rule.value and marker.left_over for marker in facts.markers)
            yield f"file '{rule.value or STEM}'" + (" anew" if old else "")


def _writer_awaited(rules: Rules, facts: Facts) -> Iterator[str]:
    """Its end itself is awaited anyway while it lives."""
    if rules.writer and _writer_known(facts):
        more = "" if handle_is_enough(facts) else f"{_chunks(facts)} and "
        yield f"{more}{span(handle_wait_s(facts))} quiet"
    elif rules.has("writer"):
        yield "a lock of the whole store to be released (or name the process: --writer-pid)"


def _writer_known(facts: Facts) -> bool:
    return facts.writer_alive is not None or bool(facts.lock_released)


def _grid_awaited(rules: Rules, facts: Facts) -> Iterator[str]:
    if not rules.grid:
        return
    if facts.grew:
        if rules.has("grid"):
            yield f"a declaration (--finish now): {some(facts.grew)} grew, so no full grid is an end"
    elif facts.expected or facts.list_total:
        by_handle = rules.writer and _writer_known(facts)
        wait_s = handle_wait_s(facts) if by_handle else grid_wait_s(rules, facts)
        yield f"{_chunks(facts)} and {span(min(wait_s, grid_wait_s(rules, facts)))} quiet"
    elif rules.has("grid"):
        yield "an array and all its chunks"


def _chunks(facts: Facts) -> str:
    if facts.expect == "file" and facts.list_total:
        total, there = facts.list_total, facts.list_total - facts.list_absent
    elif facts.expected:
        total, there = facts.expected, min(facts.expected, facts.there + facts.empty)
    else:
        return "all chunks"
    return f"all {total:,} chunks ({there:,} so far)"


def _way_out_awaited(facts: Facts) -> str:
    if not facts.begun:
        return "a first file"
    return f"{span(facts.way_out_s)} quiet (then it is unknown)"
