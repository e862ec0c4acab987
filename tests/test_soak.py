"""`make soak` in small: everything that an hour does, once or a few times, with the same verdict."""

from pathlib import Path

from benchmarks.soak import HABITS, run


def test_under_mixed_load_nothing_fails_leaks_or_gets_lost(tmp_path: Path) -> None:
    found = run(tmp_path, seconds=6, people=len(HABITS) // 2, seed=1, thinking_seconds=0.2)
    told = "\n".join(found.told())
    assert [finding.what for finding in found.verdict if not finding.holds] == [], told
    assert found.tally.replies >= 10 and found.tally.resumed >= 5, told
    assert {"first text", "stop", "switch", "refused", "send by form"} <= set(found.tally.taken), told
