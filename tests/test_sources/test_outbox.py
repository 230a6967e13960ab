"""What waits to go out: order, hold-off, one version of a key at a time; and the longest pause of a series."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from scopeferry.sources import gaps
from scopeferry.sources.outbox import (
    CHUNK,
    LONGEST_HOLD_S,
    MARKER,
    METADATA,
    Found,
    Gone,
    Outbox,
)


def found(path, number=0, *, rank=CHUNK, fresh=True, mtime_ns=0) -> Found:
    return Found(path, number, mtime_ns, 1, 1, 0o100644, 1, number, rank, None, fresh)


def taken(box, now=0.0, **how) -> list[str]:
    some = []
    while (item := box.take(now, **how)) is not None:
        some.append(item.path)
    return some


def test_the_order():
    box = Outbox()
    box.offer(found("old", fresh=False, mtime_ns=5), 0, further=False)
    box.offer(found("oldest", fresh=False, mtime_ns=1), 0, further=False)
    box.offer(found("marker", rank=MARKER), 0, further=False)
    box.offer_gone("gone")
    box.offer(found("new"), 0, further=False)
    box.offer(found("newer"), 0, further=False)
    box.offer(found("zarr.json", rank=METADATA), 0, further=False)
    assert taken(box) == ["zarr.json", "new", "newer", "gone", "oldest", "old"]
    assert box.take_last() is None
    for path in ("zarr.json", "new", "newer", "gone", "oldest", "old"):
        box.settled(path)
    assert box.take_last().path == "marker"


def test_later_metadata_goes_after_what_was_ready_and_once_a_second():
    box = Outbox()
    box.offer(found("zarr.json", 1, rank=METADATA), 0, further=False)
    assert taken(box) == ["zarr.json"]
    box.settled("zarr.json")
    box.offer(found("zarr.json", 2, rank=METADATA), 0.1, further=True)
    box.offer(found("chunk"), 0.2, further=False)
    box.offer(found("zarr.json", 3, rank=METADATA), 0.9, further=True)
    assert taken(box, 1.0) == ["chunk"]
    assert taken(box, 1.2) == ["zarr.json"]


def test_shots_back_to_back_are_two_copies():
    box, copies = Outbox(), 0
    for shot in range(4):
        now = shot * 0.3
        box.offer(found("c", shot), now, further=shot > 0)
        if box.take(now):
            copies += 1
            box.settled("c")
    now += LONGEST_HOLD_S
    last = box.take(now)
    assert (copies, last.size) == (1, 3)


def test_what_never_rests_is_copied_now_and_then():
    box, copies, now = Outbox(), [], 0.0
    for number in range(1200):
        now = number * 0.1
        box.offer(found("c", number), now, further=number > 0)
        if box.take(now):
            copies.append(now)
            box.settled("c")
    assert all(b - a <= LONGEST_HOLD_S + 1 for a, b in pairwise(copies))
    assert 3 <= len(copies) <= 8


def test_nothing_is_held_off_at_the_end_and_calm_keys_begin_anew():
    box = Outbox()
    box.offer(found("c", 1), 0, further=True)
    assert taken(box) == []
    assert taken(box, ending=True) == ["c"]
    assert box.settled("c") is False
    box.offer(found("c", 2), 0, further=True, ending=True)
    assert taken(box) == ["c"]
    box.settled("c")
    for number in range(5):
        box.offer(found("c", 3 + number), 1 + number, further=True)
    assert taken(box, 10) == []
    assert taken(box, 40) == ["c"]
    box.settled("c")
    box.offer(found("c", 9), 500, further=True)
    assert taken(box, 500.6) == ["c"]


def test_a_key_goes_once_and_its_settling_says_whether_it_changed():
    box = Outbox()
    box.offer(found("c", 1), 0, further=False)
    assert box.take(0).size == 1
    box.offer(found("c", 2), 0, further=True)
    assert taken(box, 100) == []
    assert box.latest("c") == found("c", 1).version
    assert box.settled("c") is True
    assert box.settled("c") is False
    assert len(box) == box.out == box.queued == box.held == 0


def test_a_name_that_is_gone_and_comes_back():
    box = Outbox()
    assert box.offer_gone("c")
    box.offer(found("c", 1), 0, further=False)
    assert [box.take(0), box.take(0)] == [found("c", 1), None]
    assert not box.offer_gone("c")
    assert box.settled("c") is False
    assert box.offer_gone("c")
    box.back("c")
    assert box.take(0) is None
    assert box.offer_gone("c")
    assert box.take(0) == Gone("c")
    assert box.settled("c") is True


@given(st.randoms(use_true_random=False), st.integers(1, 200))
def test_counts_are_those_of_what_it_holds(rng, steps):
    """Whatever is done with it: nothing is lost, nothing counted twice."""
    box, now, number, newest, settled = Outbox(), 0.0, 0, {}, {}
    flying: dict[str, int] = {}

    def settle(path):
        went = flying.pop(path)
        changed = box.settled(path)
        settled[path] = went
        if changed or newest[path] != went:
            assert changed
            box.offer(found(path, newest[path]), now, further=True)

    for _ in range(steps):
        now += rng.random()
        path = rng.choice("abcde")
        match rng.randrange(4):
            case 0 | 1:
                number += 1
                newest[path] = number
                fresh, rank = rng.random() < 0.5, rng.choice((CHUNK, METADATA))
                box.offer(found(path, number, fresh=fresh, rank=rank), now, further=path in settled)
            case 2:
                item = box.take(now)
                if item is not None:
                    assert item.path not in flying
                    flying[item.path] = item.size
            case _ if flying:
                settle(rng.choice(list(flying)))
        assert box.out == len(flying)
        assert box.queued + box.held + box.out == len(box)
    while flying or len(box):
        while (item := box.take(now, ending=True)) is not None:
            flying[item.path] = item.size
        for path in list(flying):
            settle(path)
    assert settled == newest


@given(st.lists(st.integers(0, 10**6), min_size=2), st.integers(8, 64))
def test_the_longest_pause_is_found_in_any_order(times, most):
    series = gaps.Gaps()
    for at in times:
        series.add(at)
    ordered = sorted(times)
    assert series.longest_ns == max(b - a for a, b in pairwise(ordered))


def test_the_longest_pause_of_a_long_series_in_little_memory(monkeypatch):
    monkeypatch.setattr(gaps, "MOST", 64)
    times = [number * 100 + (5000 if number > 3000 else 0) for number in range(5000)]
    random.Random(1).shuffle(times)
    series = gaps.Gaps()
    for at in times:
        series.add(at)
        assert len(series._begins) <= 64
    assert series.longest_ns == 5100
