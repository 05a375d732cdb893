from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from q2export.runtime.stopping import StopStrings


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Read one character more at a time until a stop string ends the text; of several, the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    watcher = StopStrings(stops)
    shown = []
    for piece in pieces:
        shown.append(watcher.feed(piece))
        if watcher.matched is not None:
            return shown, watcher.matched
    return [*shown, watcher.flush()], None


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert run(["a", "", "bc"], []) == (["a", "", "bc", ""], None)


def test_stop_string_across_pieces_is_never_shown_in_part() -> None:
    assert run(["Hello ", "##", "# ", "not ", "##", "#E", "ND rest"], ["###END"]) == (
        ["Hello ", "", "### ", "not ", "", "", ""],
        "###END",
    )


def test_start_of_a_stop_string_that_does_not_come_is_shown_at_the_end() -> None:
    assert run(["ab", "<", "st"], ["<stop>"]) == (["ab", "", "", "<st"], None)


def test_the_first_to_end_wins_and_of_these_the_longest() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == (["a"], "bc")
    assert run(["abc"], ["bc", "abc", "c"]) == ([""], "abc")


def test_self_overlapping_stop_string() -> None:
    assert run(["a", "a", "b", "a", "a", "a", "c"], ["aac"]) == (["", "", "aab", "", "", "a", ""], "aac")


@given(
    st.lists(st.text("ab#", max_size=4), max_size=12),
    st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3),
)
@example(["aa", "b"], ["aab", "ab"])
def test_result_does_not_depend_on_the_cuts(pieces: list[str], stops: list[str]) -> None:
    shown, matched = run(pieces, stops)
    text = "".join(pieces)
    assert ("".join(shown), matched) == reference(text, stops)


@given(st.text("ab#", max_size=20), st.lists(st.text("ab#", min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_character_is_shown_that_could_still_belong_to_a_stop_string(text: str, stops: list[str]) -> None:
    """And none is held back without need: what is held begins a stop string."""
    watcher = StopStrings(stops)
    shown = ""
    for read, character in enumerate(text, 1):
        shown += watcher.feed(character)
        if watcher.matched is not None:
            return
        held = text[len(shown) : read]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        unshown_prefixes = (stop[:n] for stop in stops for n in range(1, len(stop)))
        assert all(len(held) >= len(p) for p in unshown_prefixes if text[:read].endswith(p))
