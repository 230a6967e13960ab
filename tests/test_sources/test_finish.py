"""Each row and sentence of what is evidence of the end, by name; then all combinations of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scopeferry.errors import UsageError
from scopeferry.sources.finish import (
    ABORTED,
    FINISHED,
    KINDS,
    RUNNING,
    UNKNOWN,
    Complete,
    Evidence,
    Facts,
    Listed,
    Marker,
    Quiet,
    Rule,
    decide,
    find_markers,
    keys,
    parse,
    read_complete,
    says,
    to_end,
)

NOW = 1_000_000_000.0
MIN, HOUR = 60.0, 3600.0
AUTO = parse(["auto"])
DONE = (Marker("complete", seen_s=NOW - 5),)
BASE = Facts(now_s=NOW, quiet_s=15.0, hierarchy=True, expected=100, there=40)
FULL = replace(BASE, there=100)
MARKED = replace(BASE, markers=DONE, walk_begun_s=NOW - 4)


def kinds(decision):
    return [one.kind for one in decision.evidence]


def goes_on(rules, facts, *words):
    decision = decide(rules, facts)
    assert (decision.state, decision.ends) == (RUNNING, False)
    assert decision.awaited  # noqa: PGH005  (no mock)
    for word in words:
        assert word in to_end(decision)
    return decision


def ends(rules, facts, state=FINISHED, *, weak=False):
    decision = decide(rules, facts)
    assert (decision.state, decision.ends, decision.weak) == (state, True, weak)
    assert decision.evidence
    assert not decision.awaited
    return decision


class TestRules:
    def test_every_rule_of_the_page(self):
        texts = ["auto", "marker=a*", "grid", "writer", "quiet=90s", "manifest=sums.md5", "profile=xenium", "now"]
        assert [str(rule) for rule in parse(texts).given] == texts
        assert parse(["quiet=2h", "quiet=500ms"]).quiet_s == 0.5

    @pytest.mark.parametrize("text", ["", "quiet", "quiet=", "quiet=soon", "now=1", "marker=", "marker=/etc/x", "gird"])
    def test_nonsense_is_wrong_usage(self, text):
        with pytest.raises(UsageError) as caught:
            parse([text])
        assert caught.value.code == "SF-105"

    def test_a_misspelt_rule_names_the_nearest(self):
        with pytest.raises(UsageError) as caught:
            parse(["markr=x"])
        assert "marker" in caught.value.hint

    def test_rules_that_others_evaluate_are_passed_through(self):
        rules = parse(["names=*.xenium", "profile=xenium"], more=["names"])
        assert rules.others == (Rule("names", "*.xenium"), Rule("profile", "xenium"))
        goes_on(rules, FULL, "names=*.xenium", "profile=xenium")
        with pytest.raises(UsageError):
            parse(["names=*.xenium"])

    def test_an_explicit_rule_replaces_auto(self):
        goes_on(parse(["quiet=2h"]), replace(MARKED, there=100, quiet_s=HOUR), "2 h quiet")
        goes_on(parse(["marker=x"]), replace(FULL, quiet_s=99 * HOUR), "file 'x'")


class TestSaysRunning:
    """Whatever says finished: here everything does."""

    EVERYTHING = replace(
        FULL, markers=DONE, walk_begun_s=NOW - 4, writer_pid=9, writer_alive=False, quiet_s=59 * MIN, settle_given=True
    )
    RULES = parse(["auto", "quiet=30m"])

    def test_everything_says_finished(self):
        assert kinds(ends(self.RULES, self.EVERYTHING)) == ["marker", "handle", "structural", "quiet"]

    @pytest.mark.parametrize(
        ("more", "word"),
        [
            ({"manifests": [Listed("sums.md5", total=3, absent=["a", "b"])]}, "2 more files of sums.md5"),
            ({"manifests": [Listed("sums.md5", total=3, whole=False)]}, "sums.md5 to become whole"),
            ({"extra": [Evidence("marker", RUNNING, "begun, not ended", NOW)]}, "begun, not ended"),
            ({"locks": ["0/frames.journal.partial"]}, "0/frames.journal.partial to be unlocked"),
            ({"writer_alive": True}, "process 9 to end"),
            ({"open_files": {"0/c/1": 59 * MIN}}, "0/c/1 to be closed"),
            ({"torn": ["0/c/0"], "quiet_s": 9 * MIN}, "0/c/0 to become whole (or 10 min quiet: aborted)"),
            ({"temporary": ["0/c/0.__lock"], "quiet_s": 9 * MIN}, "0/c/0.__lock to go (or 10 min quiet: aborted)"),
            ({"unparsable": ["zarr.json"], "quiet_s": 9 * MIN}, "zarr.json to become whole"),
            ({"promised": ["B/03"], "quiet_s": 29 * MIN}, "B/03 to appear (or 30 min quiet: aborted)"),
            ({"expect": "dense", "there": 99, "empty": 0}, "1 more chunks (or 6 h quiet: aborted)"),
            ({"expect": "file", "list_total": 8, "list_absent": 2, "quiet_s": 29 * MIN}, "2 more chunks"),
            ({"strays": ["notes.tmp"]}, "notes.tmp to go, or to be left alone for 10 s"),
            ({"listed": False}, "a first full listing"),
        ],
    )
    def test_it_goes_on_and_names_it_and_only_a_declaration_overrules_it(self, more, word):
        facts = replace(self.EVERYTHING, **more)
        decision = goes_on(self.RULES, facts, word)
        assert decision.evidence[0].verdict == RUNNING
        said = decide(parse(["now"]), facts)
        assert said.ends
        assert said.state == (ABORTED if facts.short else FINISHED)
        assert said.overruled

    def test_something_changed_within_settle(self):
        facts = replace(FULL, quiet_s=3.0, newest="0/c/12", settle_given=True)
        assert goes_on(AUTO, facts).evidence[0].detail == "0/c/12 changed 3 s ago"
        ends(AUTO, replace(facts, quiet_s=10.0))

    def test_but_not_beside_a_marker(self):
        ends(AUTO, replace(MARKED, quiet_s=0.0))

    def test_an_open_file_that_was_not_changed_within_the_hour_says_nothing(self):
        ends(AUTO, replace(MARKED, open_files={"0/c/1": 61 * MIN}))

    @pytest.mark.parametrize("what", ["torn", "temporary", "unparsable"])
    def test_dead_after_10_minutes_or_60_settles(self, what):
        facts = replace(MARKED, **{what: ["x"]})
        ends(AUTO, replace(facts, quiet_s=10 * MIN), ABORTED)
        goes_on(AUTO, replace(facts, quiet_s=59 * MIN, settle_s=60.0), "1 h quiet: aborted")
        ends(AUTO, replace(facts, quiet_s=60 * MIN, settle_s=60.0), ABORTED)

    @pytest.mark.parametrize(
        "holder", [{"held": ["x"]}, {"locks": ["journal"]}, {"writer_pid": 7, "writer_alive": True}]
    )
    def test_never_dead_while_somebody_holds_it(self, holder):
        goes_on(AUTO, replace(MARKED, temporary=["x"], quiet_s=99 * HOUR, **holder))

    def test_what_is_promised_is_dead_after_the_way_out(self):
        facts = replace(MARKED, there=100, promised=["well B/03"], gap_s=200.0)
        goes_on(AUTO, replace(facts, quiet_s=33 * MIN))
        ends(AUTO, replace(facts, quiet_s=34 * MIN), ABORTED)

    def test_a_chunk_that_must_be_there_is_dead_after_the_way_out_of_a_part_full_grid(self):
        facts = replace(MARKED, expect="dense")
        goes_on(AUTO, replace(facts, quiet_s=5.9 * HOUR))
        ends(AUTO, replace(facts, quiet_s=6 * HOUR), ABORTED)

    def test_a_chunk_known_to_be_empty_counts_as_there(self):
        ends(AUTO, replace(MARKED, expect="dense", there=40, empty=60))


class TestDeclared:
    def test_finish_now(self):
        assert ends(parse(["now"]), BASE).evidence[0] == Evidence("declared", FINISHED, "--finish now", NOW)

    def test_declare_finished_says_who(self):
        assert ends(AUTO, replace(BASE, declared_by="ann on scope1")).evidence[0].detail == "ann on scope1"

    def test_every_file_of_a_manifest(self):
        rules = parse(["manifest=a.md5", "manifest=b.md5"])
        both = (Listed("a.md5", total=3), Listed("b.md5", total=1))
        assert kinds(ends(rules, replace(BASE, manifests=both)))[0] == "declared"
        goes_on(rules, replace(BASE, manifests=(both[0], Listed("b.md5", there=False))), "file 'b.md5'")
        goes_on(rules, replace(BASE, manifests=(both[0], Listed("b.md5", total=0))), "b.md5")
        goes_on(rules, replace(BASE, manifests=(both[0], Listed("b.md5", total=2, absent=["x"]))), "1 more files")

    @pytest.mark.parametrize("state", [FINISHED, ABORTED])
    def test_complete_json(self, state):
        ends(AUTO, replace(BASE, complete=Complete(state), temporary=["x"]), state)

    def test_complete_json_of_an_earlier_acquisition_is_a_note(self):
        for more in ({"complete_left_over": True}, {"locks": ["journal"]}):
            assert goes_on(AUTO, replace(BASE, complete=Complete(FINISHED), **more)).notes

    def test_at_the_end_a_chunk_is_absent_that_must_not_be(self):
        for more in ({"expect": "dense"}, {"expect": "file", "list_total": 9, "list_absent": 1}):
            ends(parse(["now"]), replace(BASE, **more), ABORTED)
        ends(parse(["now"]), replace(BASE, expect="sparse"))


class TestMarker:
    def test_ends_when_a_walk_begun_after_it_was_seen_finds_nothing_new_and_nothing_is_in_flight(self):
        ends(AUTO, MARKED)
        goes_on(AUTO, replace(MARKED, walk_begun_s=NOW - 5), "a full walk after 'complete'")
        goes_on(AUTO, replace(MARKED, walk_begun_s=None), "a full walk")
        goes_on(AUTO, replace(MARKED, in_flight=3), "3 in flight")

    def test_sparse_array_marked_complete_ends_at_once(self):
        ends(AUTO, replace(MARKED, expected=5000, there=4))

    def test_the_default_rule_is_a_stem_at_the_root(self):
        seen = dict.fromkeys(["complete", "complete.json", "complete.tar.gz", "incomplete", "a/complete"], (1.0, 5))
        assert [marker.path for marker in find_markers(AUTO, seen)] == ["complete", "complete.json"]
        assert [path for path in seen if AUTO.marks(path)] == ["complete", "complete.json"]
        assert AUTO.marks_array("a/complete")

    def test_for_plates_also_one_in_every_arrays_folder(self):
        seen = {"A/1/0/complete": (3.0, 50)}
        assert find_markers(AUTO, seen, plate_arrays=["A/1/0", "A/2/0"]) == ()
        (found,) = find_markers(AUTO, seen | {"A/2/0/complete": (9.0, 50)}, plate_arrays=["A/1/0", "A/2/0"])
        assert found.seen_s == 9.0

    def test_a_glob(self):
        rules = parse(["marker=**/done_*.txt"])
        found = find_markers(rules, {"x/done_1.txt": (1.0, 5), "complete": (1.0, 5)})
        assert [marker.path for marker in found] == ["x/done_1.txt"]
        ends(rules, replace(BASE, markers=found, walk_begun_s=2.0))

    def test_older_than_every_arrays_metadata_was_left_by_an_earlier_acquisition(self):
        old = find_markers(AUTO, {"complete": (NOW - 5, 10)}, metadata_ns=[11, 12])
        decision = goes_on(AUTO, replace(MARKED, markers=old), "file 'complete' anew")
        assert "earlier acquisition" in decision.notes[0]
        ends(AUTO, replace(MARKED, markers=find_markers(AUTO, {"complete": (NOW - 5, 11)}, metadata_ns=[11, 12])))

    def test_of_a_profile(self):
        found = Evidence("marker", FINISHED, "CopyComplete.txt", NOW - 5)
        rules = parse(["profile=illumina"])
        ends(rules, replace(BASE, extra=[found], walk_begun_s=NOW - 4))
        goes_on(rules, replace(BASE, extra=[found], walk_begun_s=NOW - 6))
        ends(rules, replace(BASE, extra=[replace(found, verdict=ABORTED)]), ABORTED)


class TestHandle:
    ENDED = replace(FULL, writer_pid=7, writer_alive=False)

    def test_the_process_has_ended(self):
        assert kinds(ends(AUTO, self.ENDED))[0] == "handle"

    def test_a_lock_that_was_seen_held_is_released(self):
        ends(AUTO, replace(FULL, lock_released="frames.journal"))

    def test_nothing_is_open_is_no_evidence(self):
        goes_on(AUTO, FULL)

    def test_only_with_a_full_grid_or_sparse(self):
        half = replace(self.ENDED, there=50)
        goes_on(parse(["writer"]), half, "all 100 chunks (50 so far) and 10 s quiet")
        ends(parse(["writer"]), replace(half, expect="sparse"))
        ends(parse(["writer"]), replace(half, hierarchy=False, expected=0, there=0))
        goes_on(parse(["writer"]), replace(half, expected=0, there=0))

    def test_after_settle(self):
        goes_on(AUTO, replace(self.ENDED, quiet_s=9.0))

    def test_also_for_an_array_that_grew(self):
        ends(AUTO, replace(self.ENDED, grew=["0"]))

    def test_a_writer_that_nobody_knows_is_asked_for(self):
        goes_on(parse(["writer"]), FULL, "--writer-pid")


class TestStructural:
    def test_alone_after_10_minutes_or_3_gaps(self):
        goes_on(AUTO, replace(FULL, quiet_s=9.9 * MIN), "all 100 chunks (100 so far) and 10 min quiet")
        assert kinds(ends(AUTO, replace(FULL, quiet_s=10 * MIN))) == ["structural"]
        goes_on(AUTO, replace(FULL, quiet_s=14 * MIN, gap_s=5 * MIN), "15 min quiet")
        ends(AUTO, replace(FULL, quiet_s=15 * MIN, gap_s=5 * MIN))

    @pytest.mark.parametrize(
        ("rules", "more"),
        [
            (["grid"], {}),
            (["auto"], {"expect": "dense"}),
            (["auto"], {"expect": "file", "list_total": 100}),
            (["auto"], {"settle_given": True}),
            (["auto"], {"writer_pid": 7, "writer_alive": False}),
        ],
    )
    def test_after_settle_if_asked_for_or_with_handle(self, rules, more):
        ends(parse(rules), replace(FULL, **more))

    @pytest.mark.parametrize("rules", [["grid"], ["auto"]])
    @pytest.mark.parametrize(
        "more", [{}, {"settle_given": True}, {"expect": "dense"}, {"expect": "file", "list_total": 9}]
    )
    def test_never_for_an_array_that_grew_or_came_in_shots(self, rules, more):
        facts = replace(FULL, grew=["0"], **more)
        goes_on(parse(rules), replace(facts, quiet_s=29 * MIN))
        if rules == ["auto"]:
            ends(AUTO, replace(facts, quiet_s=30 * MIN), UNKNOWN)
        else:
            goes_on(parse(rules), replace(facts, quiet_s=99 * HOUR), "declaration")

    def test_a_full_grid_with_something_promised_is_not_full(self):
        goes_on(parse(["grid"]), replace(FULL, promised=["level 1"]))

    def test_a_list_satisfied(self):
        ends(AUTO, replace(BASE, expect="file", list_total=40))

    def test_a_named_marker_forbids_the_grid_alone(self):
        goes_on(parse(["auto", "marker=x"]), replace(FULL, quiet_s=29 * MIN))
        ends(parse(["grid", "marker=x"]), FULL)


class TestQuiet:
    def test_named_by_the_user_is_finished_and_weak(self):
        assert kinds(ends(parse(["quiet=1m"]), replace(BASE, quiet_s=60.0), weak=True)) == ["quiet"]
        goes_on(parse(["quiet=1m"]), replace(BASE, quiet_s=59.0), "1 min quiet")

    def test_beside_a_stronger_one_it_is_not_weak(self):
        ends(parse(["quiet=1m", "grid"]), replace(FULL, quiet_s=60.0))

    def test_of_auto_is_unknown(self):
        plain = replace(BASE, hierarchy=False, expected=0, there=0)
        goes_on(AUTO, replace(plain, quiet_s=29 * MIN), "file 'complete', or 30 min quiet (then it is unknown)")
        ends(AUTO, replace(plain, quiet_s=30 * MIN), UNKNOWN)
        goes_on(AUTO, replace(plain, quiet_s=30 * MIN, gap_s=4 * MIN))
        ends(AUTO, replace(plain, quiet_s=40 * MIN, gap_s=4 * MIN), UNKNOWN)

    def test_at_least_6_hours_while_a_bounded_grid_is_part_full(self):
        goes_on(AUTO, replace(BASE, quiet_s=5.9 * HOUR))
        ends(AUTO, replace(BASE, quiet_s=6 * HOUR), UNKNOWN)

    def test_an_empty_source_has_not_begun(self):
        goes_on(
            AUTO, replace(BASE, hierarchy=False, expected=0, there=0, begun=False, quiet_s=99 * HOUR), "a first file"
        )

    def test_counts_from_the_newest_change_in_the_source_not_from_our_start(self):
        quiet = Quiet(network=False)
        assert quiet.look(10**9, 50.0, wall_s=86_401.0, now_s=50.0) == 86_400.0

    def test_no_jump_of_the_clock_counts(self):
        quiet = Quiet(network=False)
        assert quiet.look(100 * 10**9, 5.0, wall_s=100.5, now_s=5.5) == 0.5
        assert quiet.look(100 * 10**9, 5.0, wall_s=9e9, now_s=6.5) == 1.5
        assert quiet.look(100 * 10**9, 5.0, wall_s=0.0, now_s=7.5) == 2.5

    def test_a_source_clock_ahead_is_a_change_not_a_wait_for_ever(self):
        quiet = Quiet(network=False)
        assert quiet.look(10**15, 5.0, wall_s=100.0, now_s=5.0) == 0.0
        assert quiet.look(10**15, 5.0, wall_s=700.0, now_s=605.0) == 600.0

    def test_on_network_mounts_only_beyond_a_clock_allowance(self):
        quiet = Quiet(network=True)
        assert quiet.look(100 * 10**9, 5.0, wall_s=200.0, now_s=5.0) == 0.0
        assert quiet.look(100 * 10**9, 5.0, wall_s=200.0, now_s=35.0) == 10.0


class TestDecision:
    def test_a_change_found_afterwards_revokes_it(self):
        ends(AUTO, replace(FULL, quiet_s=10 * MIN))
        goes_on(AUTO, replace(FULL, quiet_s=0.1))

    def test_the_pages_example(self):
        facts = replace(BASE, expected=8000, there=7960)
        assert to_end(decide(AUTO, facts)) == "file 'complete', or all 8,000 chunks (7,960 so far) and 10 min quiet"
        facts = replace(facts, there=8000, markers=DONE, walk_begun_s=NOW)
        assert [(one.kind, one.detail) for one in decide(AUTO, facts).evidence] == [
            ("marker", "complete"),
            ("structural", "8,000 of 8,000 chunks"),
        ]

    def test_growing_by_a_time_point_every_5_minutes_is_never_cut_off(self):
        for quiet_s in range(0, 300, 7):
            goes_on(AUTO, replace(FULL, grew=["0"], gap_s=300.0, quiet_s=float(quiet_s)))

    def test_a_pause_of_10_minutes_with_a_chunk_half_filled_is_no_end(self):
        goes_on(AUTO, replace(BASE, quiet_s=601.0))

    def test_one_look_that_tells_nothing_is_unknown(self):
        assert decide(AUTO, BASE).verdict == UNKNOWN
        assert decide(AUTO, replace(BASE, quiet_s=1.0)).verdict == RUNNING


class TestCompleteJson:
    def test_ours(self):
        raw = (
            b'{"schema": 1, "state": "finished", "arrays": {"0": {"written": 3, "empty": ["c/1-2/0"], "missing": []}}}'
        )
        found = read_complete(raw)
        assert found is not None
        assert found.arrays["0"].written == 3
        assert [*keys(found.arrays["0"].empty)] == ["c/1/0", "c/2/0"]

    @pytest.mark.parametrize(
        "raw",
        [
            b"", b"done", b"[]", b"{}", b"null", b"1", b"\xff", b'{"schema": 1}',
            b'{"schema": true, "state": "finished"}',
            b'{"schema": 1, "state": "running"}', b'{"schema": 1, "state": ["finished"]}', b"[" * 100_000,
            b'{"schema": 1, "state": "finished", "arrays": []}',
            b'{"schema": 1, "state": "finished", "arrays": {"0": {"empty": "c/1"}}}',
            b'{"schema": 1, "state": "finished", "arrays": {"0": {"written": -1}}}',
        ],
    )  # fmt: skip
    def test_empty_or_foreign_is_a_plain_marker(self, raw):
        assert read_complete(raw) is None

    @given(st.binary(max_size=60))
    def test_nothing_is_raised(self, raw):
        read_complete(raw)


# -- all combinations --------------------------------------------------------------------------------------------------

some_paths = st.sampled_from([(), ("x",), ("x", "y")])
spans = st.sampled_from([0.0, 3.0, 10.0, 59.0, 600.0, 1799.0, 1800.0, 7200.0, 21600.0, 1e6])
evidence = st.builds(
    Evidence, st.sampled_from(KINDS), st.sampled_from([FINISHED, RUNNING, ABORTED]), st.just("of a profile"),
    st.sampled_from([NOW - 9, NOW - 1]),
)  # fmt: skip
markers = st.builds(
    Marker,
    st.just("complete"),
    st.sampled_from([NOW - 9, NOW - 1]),
    st.sampled_from(["", "m"]),
    st.sampled_from([False, False, True]),
)
listings = st.builds(
    Listed, st.just("L"), st.booleans(), st.sampled_from([0, 4]), some_paths, st.sampled_from([True, True, False])
)
FIELDS = {
    "gap_s": st.sampled_from([100.0, 1000.0]), "settle_s": st.sampled_from([0.0, 60.0]),
    "settle_given": st.booleans(), "listed": st.just(False), "begun": st.just(False), "declared_by": st.just("ann"),
    "complete": st.sampled_from([Complete(FINISHED), Complete(ABORTED)]), "complete_left_over": st.just(True),
    "manifests": st.lists(listings, max_size=1), "markers": st.lists(markers, max_size=1),
    "walk_begun_s": st.sampled_from([NOW - 5, NOW]), "in_flight": st.just(3), "writer_alive": st.booleans(),
    "locks": st.just(("l",)), "lock_released": st.just("l"), "open_files": st.sampled_from([{"x": 5.0}, {"x": 1e5}]),
    "torn": some_paths, "temporary": some_paths, "unparsable": some_paths, "held": st.just(("x",)),
    "writer_seen": st.just(False), "blind": st.just(True), "strays": some_paths,
    "promised": some_paths, "hierarchy": st.booleans(), "expected": st.just(100), "there": st.sampled_from([40, 100]),
    "empty": st.just(60), "grew": some_paths, "expect": st.sampled_from(["dense", "sparse", "file"]),
    "list_total": st.just(5), "list_absent": st.just(2), "extra": st.lists(evidence, max_size=1),
    "extra_awaited": st.just(("e",)),
}  # fmt: skip


@st.composite
def _facts(draw):
    """Few things at once, or many: what nothing says is seen as often as what everything says."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=draw(st.sampled_from([2, 4, 40]))))
    base = draw(st.sampled_from([Facts(NOW, 15.0), MARKED, FULL, BASE]))
    base = replace(base, quiet_s=draw(spans), writer_pid=7)
    return replace(base, **{name: draw(FIELDS[name]) for name in names})


facts_all = _facts()
rule_texts = st.sampled_from(
    ["auto", "auto", "grid", "writer", "quiet=2h", "marker=m", "manifest=L", "profile=p", "now"]
)
rules_all = st.lists(rule_texts, min_size=1, max_size=3).map(parse)


def is_declared(rules, facts):
    listed = [one for one in facts.manifests if one.file in rules.values("manifest")]
    return bool(
        rules.has("now")
        or facts.declared_by
        or (facts.complete and not facts.complete_left_over and not facts.locks)
        or (listed and all(one.there and one.whole and one.total and not one.absent for one in facts.manifests))
        or any(one.kind == "declared" and one.verdict != RUNNING for one in facts.extra)
    )


def has_marker(rules, facts):
    own = any(
        not one.left_over and (rules.auto if one.rule == "" else one.rule in rules.values("marker"))
        for one in facts.markers
    )
    return own or any(one.kind == "marker" and one.verdict != RUNNING for one in facts.extra)


def is_running(rules, facts):
    """The first table, once more and in another way."""
    lacking = facts.expected > facts.there + facts.empty
    way_out = max(1800.0, 10 * facts.gap_s, 21600.0 if lacking else 0.0)
    dead = max(600.0, 60 * facts.settle_s, way_out if facts.blind else 0.0)
    alive = bool(facts.locks) or facts.writer_alive is True
    wrong = [paths for paths in (facts.torn, facts.temporary, facts.unparsable) if paths]
    absent = facts.promised or (facts.expect == "dense" and lacking) or (facts.expect == "file" and facts.list_absent)
    return bool(
        not facts.listed
        or any(not one.whole or (one.there and one.absent) for one in facts.manifests)
        or any(one.verdict == RUNNING for one in facts.extra)
        or alive
        or facts.strays
        or any(age_s <= 3600 for age_s in facts.open_files.values())
        or any(facts.quiet_s < dead or set(paths) & set(facts.held) for paths in wrong)
        or (absent and facts.quiet_s < way_out)
        or (facts.quiet_s < facts.settle_s and not has_marker(rules, facts))
    )


@settings(max_examples=500)
@given(rules_all, facts_all)
def test_something_is_awaited_exactly_while_it_does_not_end(rules, facts):
    decision = decide(rules, facts)
    assert decision.ends == (decision.state != RUNNING)
    assert bool(decision.awaited) != decision.ends
    assert all(decision.awaited)
    assert not decision.ends or decision.evidence
    assert not decision.weak or decision.state == FINISHED


@settings(max_examples=500)
@given(rules_all, facts_all)
def test_any_running_wins_over_everything_but_a_declaration(rules, facts):
    decision = decide(rules, facts)
    if is_declared(rules, facts):
        assert decision.ends
        assert decision.state != UNKNOWN
    else:
        assert not (is_running(rules, facts) and decision.ends)
        assert any(one.verdict == RUNNING for one in decision.evidence) == is_running(rules, facts)


@settings(max_examples=500)
@given(rules_all, facts_all)
def test_finished_is_never_said_without_enough(rules, facts):
    decision = decide(rules, facts)
    if decision.state != FINISHED:
        return
    assert not (facts.expect == "dense" and facts.expected > facts.there + facts.empty)
    assert not (facts.expect == "file" and facts.list_absent)
    if is_declared(rules, facts):
        return
    assert not [*facts.torn, *facts.temporary, *facts.unparsable, *facts.promised, *facts.strays]
    walked = has_marker(rules, facts) and facts.walk_begun_s is not None and not facts.in_flight
    full = 0 < facts.expected <= facts.there + facts.empty or (facts.expect == "file" and facts.list_total)
    none = not facts.expected and not facts.hierarchy
    seen = facts.writer_alive is None or facts.writer_seen or facts.lock_released
    handle = rules.writer and (facts.writer_alive is False or facts.lock_released)
    wait_s = facts.settle_s if seen else max(600.0, 3 * facts.gap_s, facts.settle_s)
    handle = handle and facts.quiet_s >= wait_s and (full or none or facts.expect == "sparse")
    asked = rules.has("grid") or facts.expect in {"dense", "file"} or facts.settle_given
    long = facts.quiet_s >= max(600.0, 3 * facts.gap_s) or (asked and facts.quiet_s >= facts.settle_s)
    structural = rules.grid and full and not facts.grew and long
    quiet = rules.quiet_s is not None and facts.quiet_s >= rules.quiet_s
    assert walked or handle or structural or quiet or facts.extra
    if not (walked or handle or structural or facts.extra):
        assert decision.weak


@settings(max_examples=500)
@given(rules_all, facts_all)
def test_unknown_only_by_the_way_out_of_auto(rules, facts):
    decision = decide(rules, facts)
    if decision.state != UNKNOWN:
        return
    assert rules.auto
    assert facts.begun
    assert facts.quiet_s >= 1800
    assert facts.expected <= facts.there + facts.empty or facts.quiet_s >= 6 * HOUR


ADDED_SIGNS = st.sampled_from(
    [{"locks": ("l",)}, {"writer_alive": True}, {"open_files": {"z": 1.0}}, {"listed": False},
     {"extra": [Evidence("structural", RUNNING, "r", NOW)]}]
)  # fmt: skip


@settings(max_examples=500)
@given(rules_all, facts_all, ADDED_SIGNS)
def test_one_more_sign_of_life_never_ends_it(rules, facts, sign):
    more = replace(facts, **sign)
    if not is_declared(rules, more):
        assert not decide(rules, more).ends


ADDED_EVIDENCE = st.sampled_from(
    [{"markers": (Marker("complete", NOW - 9), Marker("m", NOW - 9, "m")), "walk_begun_s": NOW}, {"in_flight": 0},
     {"lock_released": "l"}, {"there": 100, "list_absent": 0}, {"declared_by": "ann"}, {"settle_given": True}]
)  # fmt: skip


@settings(max_examples=500)
@given(rules_all, facts_all, ADDED_EVIDENCE)
def test_more_evidence_of_the_end_never_makes_it_go_on(rules, facts, more):
    if decide(rules, facts).ends:
        assert decide(rules, replace(facts, **more)).ends


@settings(max_examples=500)
@given(rules_all, facts_all, spans)
def test_more_quiet_never_makes_it_go_on(rules, facts, longer):
    if longer < facts.quiet_s:
        return
    if decide(rules, facts).ends:
        assert decide(rules, replace(facts, quiet_s=longer)).ends


@settings(max_examples=500)
@given(rules_all, facts_all)
def test_evidence_goes_by_strength_and_rules_say_it_alone_too(rules, facts):
    decision = decide(rules, facts)
    if decision.ends:
        ranks = [KINDS.index(one.kind) for one in decision.evidence]
        assert ranks == sorted(ranks)
    for rule in rules.given:
        found = says(rule, facts)
        assert found is None or found.verdict == FINISHED
