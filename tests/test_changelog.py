"""The changelog has a place for the version that is in the making, and its two kinds of news."""

import re

from db.version import RELEASE
from tests.markdown import headings, read, section

CHANGELOG = read("CHANGELOG.md")


def test_the_newest_heading_is_the_release_that_builds_belong_to() -> None:
    assert headings(CHANGELOG)[0] == RELEASE


def test_versions_come_newest_first_and_once() -> None:
    versions = [tuple(map(int, version.split("."))) for version in headings(CHANGELOG)]
    assert versions
    assert versions == sorted(set(versions), reverse=True)


def test_every_version_tells_improvements_or_bug_fixes_in_prose() -> None:
    for version in headings(CHANGELOG):
        told = section(CHANGELOG, version)
        kinds = headings(told, 3)
        assert kinds in (["Improvements"], ["Bug fixes"], ["Improvements", "Bug fixes"])
        for kind in kinds:
            paragraphs = [part.strip() for part in section(told, kind).strip().split("\n\n")]
            assert all(re.search(r"[.!?)]$", part) and not part.startswith(("-", "*")) for part in paragraphs)
