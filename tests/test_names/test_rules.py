"""What names become at a destination that does not take them all, by its rules alone."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scopeferry.copying.names import ENDINGS, SUSPECTS, Names, Rules, decoded
from scopeferry.errors import ItemError

WINDOWS = Rules(case=True, wide_case=True, forbidden=SUSPECTS, endings=ENDINGS, reserved=True, only="utf-8", units=True)
APPLE = Rules(case=True, wide_case=True, full_case=True, forms=True, only="utf-8", units=True)
FAT = Rules(case=True, forbidden=SUSPECTS, endings=ENDINGS, reserved=True, only="ascii")
EVERY = {"windows": WINDOWS, "apple": APPLE, "fat": FAT, "case only": Rules(case=True), "nothing": Rules()}
LETTERS = "aAbBéÉßsS\u0301eE%419cCoOnN.?: \udcff\U0001f52c\x01"


def code_of(names: Names, folder: str, name: str) -> str:
    with pytest.raises(ItemError) as caught:
        names.name(folder, name)
    return caught.value.code


def stored(names: Names, listing: list[str], folder: str = "") -> dict[str, str]:
    """Name -> stored name, of those that can be stored."""
    found = {}
    for name in listing:
        try:
            found[name] = names.name(folder, name)
        except ItemError:
            continue
    return found


@pytest.mark.parametrize(
    "name",
    ["a?b", "a:b", 'a"b', "a\\b", "a|b", "a*", "<a", "a>", "a.", "a ", "con", "CON.txt", "Lpt1", "aux.tar.gz", "a\nb",
     "a\tb", "bad\udcff", "x" * 256, "com\u00b9", "nul .txt"],
)  # fmt: skip
def test_what_windows_cannot_hold(name):
    assert code_of(Names(WINDOWS), "", name) == "SF-207"
    assert code_of(Names(WINDOWS), "some/folder", name) == "SF-207"


@pytest.mark.parametrize(
    "name", ["a", ".hidden", "a b", "-x", "console", "com", "com10", "lpt", "é" * 255, "x" * 255, "50%"]
)
def test_what_windows_can_hold(name):
    for percent in (False, True):
        assert Names(WINDOWS, percent=percent).name("", name) == name


def test_the_length_counts_as_the_destination_counts_it():
    assert code_of(Names(WINDOWS), "", "é" * 256) == "SF-207"
    assert code_of(Names(WINDOWS), "", "\U0001f52c" * 128) == "SF-207", "two units each"
    assert code_of(Names(Rules(longest=143)), "", "é" * 72) == "SF-207", "two bytes each"
    assert Names(Rules(longest=143)).name("", "é" * 71)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a?b", "a%3Fb"), ("t. ", "t.%20"), ("t.", "t%2E"), ("CON.txt", "CO%4E.txt"), ("nul", "nu%6C"),
        ("a%41", "a%2541"), ("100%", "100%"), ("100%?", "100%%3F"), ("bad\udcff", "bad%FF"), ("a\nb", "a%0Ab"),
        ("%4?1", "%4%3F1"), ("com1 .x", "com%31 .x"), ("Image.tif", "Image.tif"),
    ],
)  # fmt: skip
def test_percent_replaces_what_cannot_stay(name, wanted):
    assert Names(WINDOWS, percent=True).name("", name) == wanted
    assert decoded(wanted) == name


def test_percent_does_not_shorten():
    names = Names(WINDOWS, percent=True)
    with pytest.raises(ItemError) as caught:
        names.name("", "?" * 100)
    assert caught.value.code == "SF-207"
    assert "percent" not in caught.value.hint


@pytest.mark.parametrize(
    ("rules", "twins"),
    [
        (Rules(case=True), ["A", "a"]), (WINDOWS, ["É", "é"]), (APPLE, ["straße", "strasse"]),
        (APPLE, ["\u00e9", "e\u0301"]), (APPLE, ["E\u0301", "\u00e9"]), (WINDOWS, ["ab", "aB", "Ab", "AB"]),
    ],
)  # fmt: skip
def test_the_second_twin_is_refused_or_gets_another_name(rules, twins):
    plain, mapped = Names(rules), Names(rules, percent=True)
    plain.enter("f", twins)
    mapped.enter("f", twins)
    assert list(stored(plain, twins, "f").values()) == [min(twins, key=lambda one: one.encode())]
    for name in twins:
        if name != min(twins, key=lambda one: one.encode()):
            assert code_of(plain, "f", name) == "SF-208"
    found = stored(mapped, twins, "f")
    assert len({rules.key(one) for one in found.values()}) == len(twins)
    assert {name: decoded(one) for name, one in found.items()} == {name: name for name in twins}


@pytest.mark.parametrize(
    ("rules", "apart"),
    [
        (Rules(), ["A", "a"]), (Rules(case=True), ["É", "é"]), (WINDOWS, ["straße", "strasse"]),
        (WINDOWS, ["\u00e9", "e\u0301"]),
    ],
)  # fmt: skip
def test_what_the_destination_tells_apart_is_left_alone(rules, apart):
    names = Names(rules)
    names.enter("", apart)
    assert stored(names, apart) == {name: name for name in apart}


def test_a_twin_stays_refused_only_as_long_as_it_has_one():
    names = Names(WINDOWS)
    names.enter("", ["A", "a"])
    assert code_of(names, "", "a") == "SF-208"
    names.enter("", ["a"])
    assert names.name("", "a") == "a"


def test_folders_are_mapped_on_the_way_to_their_files():
    names = Names(WINDOWS, percent=True)
    names.enter("", ["Data", "data", "a?b"])
    names.enter("data", ["X", "x"])
    assert names.path("data") == "%64ata"
    assert names.full("data/x") == "%64ata/%78"
    assert names.full("a?b/c:d/e") == "a%3Fb/c%3Ad/e"
    assert names.path("") == ""
    plain = Names(WINDOWS)
    plain.enter("", ["Data", "data"])
    with pytest.raises(ItemError) as caught:
        plain.full("data/x")
    assert caught.value.code == "SF-208"


def test_what_stands_keeps_its_name_whoever_comes_first():
    names = Names(WINDOWS)
    names.enter("", ["A", "a"], stands=lambda name: name == "a")
    assert names.name("", "a") == "a"
    assert code_of(names, "", "A") == "SF-208"
    mapped = Names(WINDOWS, percent=True)
    assert mapped.enter("", ["A", "a"], stands=lambda name: name == "a") == {"A": "%41"}
    assert mapped.name("", "a") == "a"


def test_a_name_once_given_is_kept_when_the_twin_is_gone():
    mapped = Names(WINDOWS, percent=True)
    given = mapped.enter("", ["A", "a"])
    later = Names(WINDOWS, percent=True)
    later.enter("", ["a"], held=given)
    assert later.name("", "a") == mapped.name("", "a") == "%61"


def test_extras_are_told_from_names_of_ours():
    names = Names(WINDOWS, percent=True)
    names.enter("f", ["A", "a", "x?"])
    assert names.is_stored(b"f/", "%61")
    assert names.is_stored(b"f/", "x%3F")
    assert names.is_stored(b"f/", "x%3f"), "a listing may show another case"
    assert not names.is_stored(b"f/", "somebody's")
    assert not names.is_stored(b"f/", "A%2"), "no escape of ours"
    apple = Names(APPLE)
    apple.enter("", ["é"])
    assert apple.is_stored(b"", unicodedata.normalize("NFD", "é")), "HFS+ lists another form than was given"


def test_names_can_be_sent_to_another_process():
    names = Names(WINDOWS, percent=True)
    names.enter("", ["A", "a"])
    assert pickle.loads(pickle.dumps(names)).full("a/x?") == names.full("a/x?") == "%61/x%3F"


@pytest.mark.parametrize("kind", EVERY)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=6), unique=True, max_size=12), st.randoms())
def test_mapping_is_safe_reversible_and_the_same_in_any_order(kind, listing, random):
    rules = EVERY[kind]
    listing = [name for name in listing if name not in {".", ".."} and "/" not in name]
    names = Names(rules, percent=True)
    given_names = names.enter("f", listing)
    found = stored(names, listing, "f")
    assert set(found) == set(listing), "with percent every short name has a place"
    assert len({rules.key(one) for one in found.values()}) == len(found), "no two names are one at the destination"
    assert all(not rules.problem(one) for one in found.values())
    assert all(decoded(one) == name for name, one in found.items())
    for again in (Names(rules, percent=True), names):
        random.shuffle(listing)
        again.enter("f", listing)
        assert stored(again, listing, "f") == found
    done = set(random.sample(listing, random.randint(0, len(listing))))  # a run was cut off, then names came
    held = {name: one for name, one in given_names.items() if name in done}
    later = Names(rules, percent=True)
    later.enter("f", [*listing, "ABAB", "abab"], held, done.__contains__)
    after = stored(later, [*listing, "ABAB", "abab"], "f")
    assert {name: after[name] for name in done} == {name: found[name] for name in done}
    assert len({rules.key(one) for one in after.values()}) == len(after)


@pytest.mark.parametrize("kind", EVERY)
@given(st.lists(st.text(LETTERS, min_size=1, max_size=5), unique=True, max_size=10), st.randoms())
def test_without_mapping_no_two_names_are_one_and_one_of_each_is_kept(kind, listing, random):
    rules = EVERY[kind]
    names = Names(rules)
    names.enter("", listing)
    found = stored(names, listing)
    assert all(name == one for name, one in found.items())
    possible = {rules.key(name) for name in listing if not rules.problem(name)}
    assert sorted(rules.key(name) for name in found) == sorted(possible)
    random.shuffle(listing)
    again = Names(rules)
    again.enter("", listing)
    assert stored(again, listing) == found
