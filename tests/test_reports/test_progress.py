"""Progress is pure: events in, a line out. Verified never exceeds copied; 100 % means that nothing is open."""

from hypothesis import given
from hypothesis import strategies as st

from scopeferry.kernel.events import Event
from scopeferry.reports.progress import Counters, Meter
from scopeferry.reports.units import percent, shorten, width


def plan(items, size):
    return Event("found", items=items, bytes=size, data={"plan": True})


def done(path, size, **data):
    return Event("done", path=path, items=1, bytes=size, data={"action": "copied", "read_back": "storage", **data})


def failed(code):
    return Event("failed", path="x", items=1, data={"code": code})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


EVENTS = st.lists(
    st.one_of(
        st.builds(done, st.just("a"), st.integers(0, 10**6), read_back=st.sampled_from(["storage", "no"])),
        st.builds(done, st.just("l"), st.integers(0, 10**6), kind=st.sampled_from(["link", "hardlink"])),
        st.builds(failed, st.sampled_from(["SF-201", "SF-204", "SF-130", "SF-501"])),
        st.builds(plan, st.integers(0, 50), st.integers(0, 10**8)),
        st.builds(Event, st.just("found"), items=st.integers(0, 99), bytes=st.integers(0, 10**9)),
    )
)


@given(EVENTS, st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7))), st.integers(1, 120))
def test_whatever_happens(events, moved, columns):
    counters, clock = Counters(), Clock()
    meter = Meter("2026-11-20_細胞", counters, clock=clock)
    for number in range(max(len(events), len(moved))):
        clock.now += 0.5
        if number < len(moved):
            counters.copied += moved[number][0]
            counters.verified += moved[number][1]
        if number < len(events):
            meter.tell(events[number])
        assert 0 <= meter.verified_percent <= meter.copied_percent <= 100
        assert meter.verified_bytes <= meter.copied_bytes
        if meter.total_bytes is not None and meter.copied_percent == 100:
            assert meter.open_items == 0
            assert not meter.failed
        for ended in (False, True):
            assert width(meter.line(columns, ended=ended)) <= columns
            assert meter.line(columns, ascii_only=True, ended=ended).isascii()


def test_a_hundred_percent_only_when_nothing_is_open():
    meter = Meter("run7", Counters(copied=10**9, verified=10**9), clock=Clock())
    meter.tell(plan(10_000, 10**6))
    for number in range(9_999):
        meter.tell(done(str(number), 100))
    assert (meter.copied_percent, meter.verified_percent) == (99, 99)
    meter.tell(done("last", 100, read_back="no"))
    assert (meter.copied_percent, meter.verified_percent) == (100, 99)


def test_failed_items_stay_open():
    meter = Meter("run7", Counters(), clock=Clock())
    meter.tell(plan(2, 200))
    meter.tell(done("a", 100))
    meter.tell(failed("SF-204"))
    assert (meter.copied_percent, meter.open_items, meter.failed) == (50, 0, 1)
    assert meter.line(80).endswith("1 of 2 files  100 B  1 failed")


def test_rate_is_the_mean_of_five_seconds_and_eta_that_of_the_slower_side():
    counters, clock = Counters(), Clock()
    meter = Meter("run7", counters, clock=clock)
    meter.tell(plan(10, 10_000_000))
    for _ in range(20):  # fast at first
        clock.now += 1
        counters.copied += 400_000
        meter.line(200)
    for _ in range(6):
        clock.now += 1
        counters.copied += 100_000
        counters.verified += 200_000
        line = meter.line(200)
    assert "  100 kB/s  " in line
    assert "ETA 44 s" in line  # 8.8 MB are left to be verified at 200 kB/s, 1.4 MB to be copied at 100 kB/s
    assert meter.line(200, ended=True).endswith("8.60 MB  331 kB/s")


def test_before_the_total_is_known():
    meter = Meter("run7", Counters(), clock=Clock())
    meter.tell(Event("found", path="a", items=1200, bytes=5_000_000))
    assert meter.line(80) == "run7  listing  1,200 files  5.00 MB so far"


def test_waiting_is_said():
    counters = Counters(waiting="destination")
    assert Meter("run7", counters, clock=Clock()).line(80) == "run7  waiting for the destination"


def test_no_word_of_verified_without_read_back():
    for proof in ("none", "sample:5%"):
        meter = Meter("run7", Counters(), proof, clock=Clock())
        meter.tell(plan(1, 10))
        assert "verified" not in meter.line(200)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.integers(0, 40))
def test_shortened_names_fit(name, columns):
    assert width(shorten(name, columns)) <= max(columns, 0)
    assert width(shorten(name, columns, ascii_only=True)) <= max(columns, 0)


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_percent(done_, total):
    found = percent(done_, total)
    assert 0 <= found <= 100
    assert (found == 100) == (done_ >= total)
