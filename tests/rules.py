"""`make rules`: run the tests that are named after a rule and print what they show, for SQLite and for PostgreSQL.

The rules stand in docs/rules.md. A test shows the rule whose id its name begins with, on the database it runs on.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATABASES = ("SQLite", "PostgreSQL")
#: a rule about the program's text alone says so in the table
NO_DATABASE = " (no database)"
#: a parameter, or else a fixture, that says on which database a test runs
RUNS_ON = {
    "sqlite": "SQLite",
    "server": "SQLite",
    "governed": "SQLite",
    "postgres": "PostgreSQL",
    "postgres_server": "PostgreSQL",
    "postgres_url": "PostgreSQL",
}
NAMED = re.compile(r"test_([A-Z]\d+)_")


def read_rules() -> dict[str, str]:
    """Every rule: its id, and what it says."""
    rows = re.findall(r"^\| ([A-Z]\d+) \| (.+) \|$", (ROOT / "docs/rules.md").read_text(), re.M)
    assert rows and len(rows) == len(dict(rows))
    return dict(rows)


def rule_of(item: pytest.Item) -> str | None:
    """The rule a test shows; None where it is not named after one."""
    named = NAMED.match(item.name)
    return named[1] if named else None


def databases_of(item: pytest.Item) -> set[str]:
    """The databases a test runs on: its parameters tell, or else what it asks for."""
    parameters = getattr(item, "callspec", None)
    given = [value for value in parameters.params.values() if isinstance(value, str)] if parameters else []
    asked = getattr(item, "fixturenames", [])
    return {RUNS_ON[name] for name in given if name in RUNS_ON} or {RUNS_ON[name] for name in asked if name in RUNS_ON}


class Shown:
    """What the tests of one rule show."""

    def __init__(self, says: str) -> None:
        self.says = says
        #: node id → the databases it runs on
        self.tests: dict[str, set[str]] = {}
        self.outcomes: dict[str, str] = {}

    @property
    def gaps(self) -> list[str]:
        """Where nothing shows it."""
        if self.says.endswith(NO_DATABASE):
            return [] if self.tests else ["anywhere"]
        return [database for database in DATABASES if not any(database in where for where in self.tests.values())]

    @property
    def failed(self) -> bool:
        return bool(self.gaps) or any(outcome != "passed" for outcome in self.outcomes.values())

    @property
    def results(self) -> str:
        """What became of its tests on each database, and of those that name neither."""
        told = [f"NO TEST on {database}" for database in self.gaps]
        for database in (*DATABASES, "besides"):
            here = [test for test, where in self.tests.items() if database in (where or {"besides"})]
            outcomes = Counter(self.outcomes.get(test, "not run") for test in here)
            if here:
                told.append(f"{database} {', '.join(f'{count} {outcome}' for outcome, count in outcomes.items())}")
        return " · ".join(told)


class Rules:
    """A plugin of pytest that leaves the tests of rules, and adds up what they show."""

    def __init__(self) -> None:
        self.shown = {id: Shown(says) for id, says in read_rules().items()}
        #: tests that are named after a rule that is not there
        self.strays: list[str] = []

    def add(self, item: pytest.Item) -> None:
        """Take a test down under its rule."""
        if (id := rule_of(item)) in self.shown:
            self.shown[id].tests[item.nodeid] = databases_of(item)
        elif id is not None:
            self.strays.append(item.nodeid)

    @property
    def faults(self) -> list[str]:
        """What is missing or broken, a sentence each."""
        broken = [f"{id}: {shown.results}" for id, shown in self.shown.items() if shown.failed]
        return broken + [f"NO RULE for {stray}" for stray in self.strays]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        for item in items:
            self.add(item)
        config.hook.pytest_deselected(items=[item for item in items if rule_of(item) is None])
        items[:] = [item for item in items if rule_of(item) is not None]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        named = NAMED.match(report.nodeid.rpartition("::")[2])
        if named is None or named[1] not in self.shown or (report.when != "call" and report.passed):
            return
        outcomes = self.shown[named[1]].outcomes
        if outcomes.get(report.nodeid) != "failed":
            outcomes[report.nodeid] = report.outcome

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.table():
            terminalreporter.write_line(line)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and self.faults:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def table(self) -> Iterator[str]:
        """Rule → its words → what its tests show on each database → the tests."""
        width = max(len(shown.says) for shown in self.shown.values())
        for id, shown in self.shown.items():
            yield f"{id:4}{shown.says:{width}}  {shown.results}"
            functions = Counter(test.partition("[")[0] for test in shown.tests)
            for function, count in sorted(functions.items()):
                yield f"      {function}{f' × {count}' if count > 1 else ''}"
        yield from (f"NOT SHOWN {fault}" for fault in self.faults)
        yield f"{len(self.shown)} rules, {'not all' if self.faults else 'all'} shown"


def main(arguments: list[str]) -> int:
    """Run them; not 0 where a rule has no test, lacks a database, or is broken."""
    return int(pytest.main(["-q", "--no-header", "-r", "", *arguments], plugins=[Rules()]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
