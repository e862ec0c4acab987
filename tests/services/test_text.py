"""What a session is called until somebody names it: how its first prompt begins, clean and on one line."""

import time

import pytest

from services.text import title_of

TITLES = [
    ("Where is Rome?", "Where is Rome?"),
    ("  Where\n is\tRome  ", "Where is Rome"),
    ("# Plan\n\n- [ ] **buy** `milk`\n- [x] _sell_ cows", "Plan buy milk sell cows"),
    ("> quoted\n\n1. one\n2. two", "quoted one two"),
    ("How do I sort a list? I have tried `sorted(x)` and it does not do what I want.", "How do I sort a list?"),
    ("Why? Because I want to know how it works here", "Why? Because I want to know how it works here"),
    ("今天天气怎么样，我应该带伞吗？另外我想知道明天的天气", "今天天气怎么样，我应该带伞吗？"),
    ("Fix this:\n```python\nx = 1\n```\nIt fails.", "Fix this: It fails."),
    ("```python\nx = 1\n```", "x = 1"),
    ("~~~\nnever closed", "never closed"),
    ("See [the manual](https://example.org/a_b) and ![a picture](x.png)", "See the manual and a picture"),
    ("snake_case_names and 2 * 3 * 4 stay", "snake_case_names and 2 * 3 * 4 stay"),
    ("---\ntitle", "title"),
    ("---", "---"),
    ("A rather long one about the hills of Rome and its seven kings",
     "A rather long one about the hills of Rome and its seven…"),
    ("x" * 99, "x" * 60 + "…"),
    ("<b>bold</b> & co", "<b>bold</b> & co"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "title"), TITLES)
def test_a_title_is_how_the_first_prompt_begins(prompt: str, title: str) -> None:
    assert title_of(prompt) == title


@pytest.mark.parametrize("part", ["[", "![a](", "```\n", "*", "> ", "- ", "_a", "1. ", "~~~", "?", "** "])
def test_a_title_is_made_in_no_time_whatever_the_prompt(part: str) -> None:
    begun = time.process_time()
    title = title_of(part * (100_000 // len(part)))
    assert time.process_time() - begun < 0.1
    assert title and len(title) <= 61 and "\n" not in title
