"""Every rule of docs/rules.md has its tests: here they are counted, `make rules` runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules import NO_DATABASE, Rules, Shown, read_rules

ROOT = Path(__file__).parents[1]
#: how many rules there are of each letter
RULES = {"I": 13, "C": 8, "A": 6, "E": 11, "F": 3, "O": 5, "M": 8, "S": 14, "G": 11, "L": 9, "D": 1, "J": 4}


def test_every_rule_is_written_down_once_and_in_order() -> None:
    rules = [f"{letter}{number + 1}" for letter in RULES for number in range(RULES[letter])]
    rules.insert(rules.index("S1"), "S0")
    assert list(read_rules()) == rules


def test_every_rule_has_a_test_on_both_databases(request: pytest.FixtureRequest) -> None:
    chosen = request.config.option.keyword or request.config.option.markexpr
    if request.config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen:
        rules = Rules()
        for item in request.session.items:
            rules.add(item)
        assert rules.faults == []
    else:  # not everything is collected here
        program = [sys.executable, "-m", "tests.rules", "--collect-only"]
        done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)
        faults = [line for line in done.stdout.splitlines() if line.startswith(("NOT SHOWN", "ERROR"))]
        assert (done.returncode, faults) == (0, [])
        assert f"{sum(RULES.values()) + 1} rules, all shown" in done.stdout


def test_a_rule_is_shown_where_its_tests_run_and_pass() -> None:
    shown = Shown("It holds")
    assert shown.gaps == ["SQLite", "PostgreSQL"]
    shown.tests = {"one": {"SQLite"}, "two": set()}
    assert (shown.gaps, shown.failed) == (["PostgreSQL"], True)
    shown.tests["three"] = {"PostgreSQL"}
    shown.outcomes = {"one": "passed", "three": "passed"}
    assert (shown.gaps, shown.failed) == ([], False)
    assert shown.results == "SQLite 1 passed · PostgreSQL 1 passed · besides 1 not run"
    for outcome in ("failed", "skipped"):
        shown.outcomes["three"] = outcome
        assert shown.failed
    assert Shown(f"It holds{NO_DATABASE}").gaps == ["anywhere"]
