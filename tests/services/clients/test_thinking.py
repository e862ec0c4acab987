"""Reasoning inside a reply: split off at its beginning, wherever the text is cut."""

import time

import pytest

from services.clients.thinking import Parting

#: {what came: (reasoning, reply)}
PARTED = {
    "Hello": ("", "Hello"),
    "<think>\nLet <b>me</b> see.\n\n- one\n</think>\n\nForty-two": ("Let <b>me</b> see.\n\n- one\n", "Forty-two"),
    "\n <THINKING>a</Thinking>b": ("a", "b"),
    "<think></think>\n\nb": ("", "b"),
    "<think>a</think>": ("a", ""),
    "<think>goes on <i": ("goes on <i", ""),
    "<think>cut in its end </thi": ("cut in its end </thi", ""),
    "<thin": ("", "<thin"),
    "<thinker>a</thinker>": ("", "<thinker>a</thinker>"),
    "First <think>a</think>": ("", "First <think>a</think>"),
    "a</think>b": ("", "a</think>b"),
    "<think>a<think>b</think>c</think> <think>d</think>": ("a<think>b", "c</think> <think>d</think>"),
    "<think>a</think>  \n\n  b  ": ("a", "b  "),
    "  \n": ("", "  \n"),
    " " * 65 + "<think>a</think>b": ("", " " * 65 + "<think>a</think>b"),
    "<think>ü\u2028🦊<</</think>🦊": ("ü\u2028🦊<</", "🦊"),
}


def parted(*pieces: str) -> tuple[str, str]:
    """A reply that comes in pieces."""
    parting = Parting()
    told = [*map(parting.feed, pieces), parting.close()]
    return "".join(reasoning for reasoning, _ in told), "".join(reply for _, reply in told)


@pytest.mark.parametrize(("text", "wanted"), PARTED.items())
def test_however_it_is_cut_it_is_parted_alike(text: str, wanted: tuple[str, str]) -> None:
    assert parted(text) == parted(*text) == wanted
    for cut in range(len(text)):
        for again in range(cut, len(text), 3):
            assert parted(text[:cut], text[cut:again], text[again:]) == wanted


def test_what_cannot_become_a_tag_is_not_held_back() -> None:
    parting = Parting()
    assert parting.feed("<") == ("", "")
    assert parting.feed("b>") == ("", "<b>")
    assert parting.over
    parting = Parting()
    assert parting.feed("<think>a </") == ("a ", "")
    assert parting.feed("b") == ("</b", "")


@pytest.mark.parametrize("unit", [" ", "<", "</think", "<think>", "a"])
def test_a_million_characters_one_by_one_cost_no_more_each(unit: str) -> None:
    def seconds(characters: int) -> float:
        parting, began = Parting(), time.process_time()
        parting.feed("<think>x")
        for letter in unit * (characters // len(unit)):
            parting.feed(letter)
        return time.process_time() - began

    assert min(seconds(20_000) for _ in range(3)) < 4 * min(seconds(10_000) for _ in range(3))
