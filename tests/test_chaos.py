"""`make chaos` in small: a few kills under running turns, and a stop."""

from pathlib import Path

from tests.chaos import run


def test_G5_kills_at_random_moments_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, kills=3, turns=10, seed=7)
    assert sum(found.cut) >= 5 and sum(len(asked.turn["reply"]) for asked in found.ended) > 1000, found.report
    assert any(asked.goes_on for asked in found.ended), found.report
