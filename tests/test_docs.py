"""Docs that cannot rot: what they name exists, what exists is named, and what they tell people to run runs."""

import ast
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import click
import httpx
import msgspec
import pytest

from services import text
from services.catalogue import ModelConfig
from services.changes import GOVERNED
from services.client_pool import LOCAL_PORTS, PROBE_EVERY_SECONDS, Provider
from services.clients import ErrorCode
from services.clients.docs_search import DocsSearch
from services.clients.echo import Plan
from services.clients.guide import SUGGESTIONS
from services.configuration import GroupConfig
from services.idempotency import KEY_CHARACTERS
from services.policies import DEFAULT_LIMITS, Rate, parse_span
from services.readers import HEARTBEAT_SECONDS
from services.transfer import Document, SessionRecord, TurnRecord
from services.trials import Trial
from tests.markdown import DOCS, PAGES, ROOT, anchors, bare, blocks, headings, links, read, section, spans, table
from tests.web.running import Server, a_server
from tests.web.wire import ABSENT
from web import views
from web.__main__ import main
from web.activity import ActivitiesView, ActivityView
from web.bodies import FIELDS, VALUES
from web.completions import MOST_MESSAGES, ChatCompletion
from web.connection import HEAD_BYTES, HEADERS, LINE_BYTES, TOLD
from web.errors import STATUS
from web.guard import BODY_BYTES, FILE_BYTES
from web.openapi import Problem
from web.routes import ROUTES
from web.settings import PREFIX, Settings, SettingsError, load

CONFIGURE, HTTP, ERRORS = read("docs/configure.md"), read("docs/http.md"), read("docs/errors.md")
OPERATE, SESSIONS, MODELS, README = (
    read("docs/operate.md"),
    read("docs/sessions.md"),
    read("docs/models.md"),
    read("README.md"),
)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `make run` gives somebody who has configured nothing."""
    with a_server(tmp_path_factory.mktemp("fresh"), "", TURNKEEPER_DISCOVER="false") as running:
        yield running


def shown(value: object) -> str:
    """How a default is written in a table."""
    if value in (None, "", [], {}):
        return "–"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def fields_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """{field: its default as a table writes it}."""

    def default(field: Any) -> str:
        if field.required:
            return "required"
        return shown(field.default_factory() if field.default is msgspec.NODEFAULT else field.default)

    return {field.encode_name: default(field) for field in msgspec.structs.fields(struct)}


# ---------------------------------------------------------------- settings

#: fields of Settings that are not set in the file: keys come from the environment alone, and the file names itself
NOT_KEYS = {"openai_api_key", "anthropic_api_key", "config_file"}


def known_variables() -> set[str]:
    """The variables that are settings, in the words of the refusal of one that is none."""
    with pytest.raises(SettingsError) as refused:
        load({f"{PREFIX}NONSENSE": "1"})
    return set(re.findall(rf"{PREFIX}[A-Z_]+", str(refused.value))) - {f"{PREFIX}NONSENSE"}


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    documented = {bare(key): bare(default) for key, _, default, _ in table(section(CONFIGURE, "All settings"))}
    assert documented == {key: default for key, default in fields_of(Settings).items() if key not in NOT_KEYS}


def test_every_environment_variable_is_documented_beside_its_key_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    documented = {bare(name): bare(key) for key, name, _, _ in table(section(CONFIGURE, "All settings")) if name}
    assert set(documented) == known_variables()
    assert all(name == f"{PREFIX}{key.upper()}" for name, key in documented.items())
    others = {bare(name) for name, _ in table(section(CONFIGURE, "Environment variables that are no settings"))}
    (tmp_path / "url").write_text("sqlite:///from-a-file.db\n")
    (tmp_path / "redis").write_text("redis://from-a-file\n")
    (tmp_path / "other.toml").write_text("")
    settings = load(
        {
            "TURNKEEPER_CONFIG": "other.toml",
            "TURNKEEPER_DATABASE_URL_FILE": "url",
            "TURNKEEPER_REDIS_URL_FILE": "redis",
            "OPENAI_API_KEY": "one",
            "ANTHROPIC_API_KEY": "two",
        }
    )
    assert (settings.database_url, settings.redis_url) == ("sqlite:///from-a-file.db", "redis://from-a-file")
    assert (settings.config_file, settings.openai_api_key, settings.anthropic_api_key) == (
        "other.toml",
        "one",
        "two",
    )
    files = {"TURNKEEPER_DATABASE_URL_FILE", "TURNKEEPER_REDIS_URL_FILE"}
    assert others == files | {"TURNKEEPER_CONFIG", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"}
    mentioned = {name for page in PAGES for name in re.findall(rf"(?<!_){PREFIX}[A-Z_]*[A-Z]", page.read_text())}
    assert mentioned <= set(documented) | others


@pytest.mark.parametrize(
    ("heading", "struct"), [("Fields of a provider", Provider), ("Fields of a model", ModelConfig)]
)
def test_every_field_is_documented_with_its_default_and_no_other(heading: str, struct: type[msgspec.Struct]) -> None:
    assert {bare(key): bare(default) for key, default, _ in table(section(CONFIGURE, heading))} == fields_of(struct)


def test_every_limit_is_documented_with_its_default_for_each_group() -> None:
    rows = {bare(row[0]): [bare(cell) for cell in row[1:4]] for row in table(section(CONFIGURE, "Limits of a group"))}
    assert set(rows) == set(fields_of(GroupConfig))
    for name, (user, guest, admin) in rows.items():
        usual = DEFAULT_LIMITS["user"].get(name, fields_of(GroupConfig)[name])
        assert user == usual, name
        for group, documented in (("guest", guest), ("admin", admin)):
            assert documented == DEFAULT_LIMITS[group].get(name, "same"), (group, name)


def test_rates_and_spans_are_written_as_the_docs_say() -> None:
    rates = [span for span in spans(section(CONFIGURE, "How a rate is written")) if "/" in span]
    assert len(rates) >= 4
    assert all(Rate.parse(rate).count for rate in rates)
    assert Rate.parse("5/min") == Rate.parse("5/min burst 5")
    examples = [span for span in spans(section(CONFIGURE, "How a span of time is written")) if span[0].isdigit()]
    assert len(examples) == 5
    assert [parse_span(span).total_seconds() for span in examples] == [45, 1800, 43200, 30 * 86400, 0]


#: the variables that examples take keys from
KEYS = ("LOCAL_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text(), "toml")], ids=lambda page: page.stem
)
def test_every_example_of_a_configuration_loads(page: Path, tmp_path: Path) -> None:
    for number, example in enumerate(blocks(page.read_text(), "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(example)
        settings = load({"TURNKEEPER_CONFIG": str(file), **dict.fromkeys(KEYS, "a-key")})
        assert settings.models
        assert all(not provider.api_key.startswith("$") for provider in settings.providers)


def test_a_wrong_setting_is_told_as_the_docs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "turnkeeper.toml").write_text('port = "x"')
    with pytest.raises(SettingsError) as refused:
        load({})
    assert blocks(section(CONFIGURE, "When a setting is wrong"), "") == [f"Error: {refused.value}\n"]


def test_the_model_servers_that_are_looked_for_are_documented() -> None:
    told = section(MODELS, "Model servers that are found by themselves")
    assert sorted(map(int, re.findall(r"\((\d+)\)", told))) == sorted(LOCAL_PORTS.values())


# ---------------------------------------------------------------- URLs, bodies, forms


def site_map() -> dict[str, Any]:
    """{"GET /session/{session_id}": handler} of everything that is routed."""
    found = {
        f"{method} " + re.sub(r":\w+}", "}", path): handler
        for handler in ROUTES
        for path in handler.paths
        for method in handler.http_methods
        if method in ("GET", "POST", "PUT", "PATCH", "DELETE")
    }
    assert len(found) > 20
    return found


def url_table() -> dict[str, str]:
    """{URL: what is sent} as documented."""
    return {bare(url): sent for url, sent, _ in table(section(HTTP, "All URLs"))}


def test_every_url_is_documented_and_every_documented_url_is_there() -> None:
    assert set(url_table()) == set(site_map())


def test_no_page_names_a_url_that_is_not_there() -> None:
    named = {
        (page.name, span)
        for page in PAGES
        for span in spans(page.read_text())
        if re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) /\S*", span)
    }
    assert len(named) > 20
    assert {(name, span) for name, span in named if span not in site_map()} == set()


@pytest.mark.parametrize("url", site_map())
def test_what_is_sent_to_a_url_is_documented(url: str) -> None:
    dependencies, documented = site_map()[url].dependencies or {}, url_table()[url]
    form = getattr(getattr(dependencies.get("form"), "dependency", None), "struct", None)
    query = getattr(getattr(dependencies.get("asked"), "dependency", None), "struct", None)
    if form is ChatCompletion:
        rows = table(section(read("docs/openai.md"), "What may be sent"))
        assert sorted(span for row in rows for span in spans(row[0])) == sorted(fields_of(form))
    elif form is not None:
        told = re.search(r"`{(.*)}`", documented)
        assert (told[1].split(", ") if told else []) == [
            field.encode_name + ("" if field.required else "?") for field in msgspec.structs.fields(form)
        ]
    else:
        assert "{" not in documented
    asked = re.search(r"query (.*)", documented)
    assert set(re.findall(r"`(\w+)`", asked[1]) if asked else []) == set(fields_of(query) if query else [])


def test_the_forms_of_json_are_documented_field_by_field() -> None:
    told = "".join(blocks(section(HTTP, "The forms of JSON"), ""))
    flat = re.sub(r"(current_model|owner|error|reply_cap): {[^}]*}", r"\1", told)
    documented = {
        name: [field.split(":")[0].strip() for field in fields.split(",")]
        for name, fields in re.findall(r"^(\w+)\s+{(.*?)}$", flat, re.MULTILINE | re.DOTALL)
    }
    structs = {
        "Session": views.SessionView,
        "Ending": views.EndingView,
        "Found": views.FoundView,
        "Sessions": views.SessionsView,
        "Turn": views.TurnView,
        "Turns": views.TurnsView,
        "File": Document,
        "FileSession": SessionRecord,
        "FileTurn": TurnRecord,
        "Imported": views.ImportedView,
        "Refused": views.RefusedView,
        "Progress": views.ProgressView,
        "Model": views.ModelView,
        "Models": views.ModelsView,
        "Switch": views.SwitchView,
        "Extension": views.ExtensionView,
        "Allowance": views.AllowanceView,
        "Limits": views.LimitsView,
        "Decision": views.DecisionView,
        "Journal": views.TimelineView,
        "Health": views.HealthView,
        "DeskSession": views.DeskSessionView,
        "Writing": views.Writing,
        "Trial": Trial,
        "Desk": views.DeskView,
        "Outcome": views.Outcome,
        "Outcomes": views.OutcomesView,
        "AdminDecision": views.AdminDecisionView,
        "AdminJournal": views.AdminJournalView,
        "Used": views.UsedView,
        "Usage": views.UsageView,
        "Login": views.LoginView,
        "Token": views.TokenView,
        "Temporary": views.TemporaryView,
        "Activity": ActivityView,
        "Activities": ActivitiesView,
        "Member": views.MemberView,
        "Account": views.AccountView,
        "Accounts": views.AccountsView,
        "AdminModel": views.AdminModelView,
        "AdminModels": views.AdminModelsView,
        "AdminLimit": views.GovernedLimit,
        "AdminGroup": views.AdminGroupView,
        "AdminGroups": views.AdminGroupsView,
        "Move": views.MoveView,
        "Moves": views.MovesView,
        "Sample": views.SampleView,
        "Preview": views.PreviewView,
    }
    assert documented == {name: list(fields_of(struct)) for name, struct in structs.items()}
    inner = dict(re.findall(r"(current_model|owner|error|reply_cap): {([^}]*)}", told))
    assert inner == {
        "owner": ", ".join(fields_of(views.OwnerView)),
        "current_model": ", ".join(fields_of(views.CurrentModel)),
        "error": ", ".join(fields_of(views.TurnError)),
        "reply_cap": ", ".join(fields_of(views.CapView)),
    }


def facts_of_refusals() -> set[str]:
    """The facts that refusals carry, as services/errors.py passes them on."""
    calls = [node for node in ast.walk(ast.parse(read("services/errors.py"))) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "__init__"]
    return {keyword.arg for call in made for keyword in call.keywords if keyword.arg}


def test_the_facts_of_a_refusal_are_documented() -> None:
    told = "".join(blocks(section(HTTP, "A refusal"), ""))
    documented = re.findall(r"(\w+)(\??)[,}]", told)
    required = {field.name for field in msgspec.structs.fields(Problem) if field.required}
    assert {name for name, mark in documented if not mark} == required
    assert {name for name, mark in documented if mark} == facts_of_refusals() | {"field"}


def test_sizes_and_waits_are_as_documented() -> None:
    sizes = section(HTTP, "Sizes")
    for size in (BODY_BYTES, FILE_BYTES, text.PROMPT_CHARACTERS, text.TITLE_CHARACTERS, text.REASON_CHARACTERS):
        assert f" {size:,}" in sizes
    for size in (FIELDS, VALUES, LINE_BYTES, HEAD_BYTES, HEADERS):
        assert f" {size:,} " in sizes.replace("\n", " ")
    assert f"{text.PROMPT_CHARACTERS:,} characters" in SESSIONS
    assert f"at most {MOST_MESSAGES:,} messages" in read("docs/openai.md")
    assert f"at most {KEY_CHARACTERS} characters" in " ".join(section(HTTP, "Repeating a request safely").split())
    assert f"After {HEARTBEAT_SECONDS:.0f} seconds of silence" in section(HTTP, "The stream of a reply")
    assert f"every {PROBE_EVERY_SECONDS:.0f} seconds" in section(SESSIONS, "When a provider is down")


# ---------------------------------------------------------------- errors and the journal

#: refusals before any rule, and failures that are nobody's rule: code → status
BESIDES = {
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "unknown_host": 421,
    "internal": 500,
    "too_many_fields": 413,
} | {code: status for code, (status, _) in TOLD.items()}


def test_every_code_of_a_refusal_is_documented_with_its_status_and_no_other() -> None:
    refusals = {refusal.code: status for refusal, status in STATUS.items()} | BESIDES
    part = section(ERRORS, "When a request is refused")
    documented = {code: int(section(part, code).strip().removeprefix("HTTP ")[:3]) for code in headings(part)}
    assert documented == refusals


def test_every_code_of_a_failed_reply_is_documented_and_no_other() -> None:
    documented = set(headings(section(ERRORS, "When a reply fails")))
    # A transcript that is too long is also refused before it is sent, and has its heading there.
    assert documented == set(get_args(ErrorCode)) - {"context_overflow"} | {"interrupted"}
    assert "context_overflow" in headings(ERRORS)
    assert '"interrupted"' in read("services/turns.py")


def test_what_is_refused_before_any_rule_has_a_documented_code(fresh: Server) -> None:
    with httpx.Client(base_url=fresh.url, headers={"Accept": "application/json"}) as script:
        answers = [
            script.get("/nowhere"),
            script.delete("/limits"),
            script.post("/chat", content=b"x" * (BODY_BYTES + 1), headers={"Content-Type": "application/json"}),
            script.get("/limits", headers={"Host": "elsewhere.example"}),
        ]
    assert [(answer.json()["code"], answer.status_code) for answer in answers] == list(BESIDES.items())[:4]
    for problem in (answer.json() for answer in answers):
        assert problem["type"] == f"urn:turnkeeper:{problem['code']}"
        assert problem["code"] in anchors(ERRORS)


def test_every_journal_event_is_documented_and_no_other() -> None:
    noun, past = (
        "account|group|limit|login|model|password|session|token|transcript|turn",
        "begun|changed|chosen|closed|created|deleted|disabled",
    )
    event = re.compile(
        rf"({noun})_({past}|enabled|ended|expired|extended|locked|opened|renamed|reopened|revoked|switched|tested|unlocked)"
    )
    written = {
        node.value
        for file in (ROOT / "services").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and event.fullmatch(node.value)
    }
    written |= {f"{kind}_changed" for kind in GOVERNED}
    codes = {refusal.code for refusal in STATUS}
    documented = {span for span in spans(section(SESSIONS, "What the journal records")) if event.fullmatch(span)}
    assert len(written - codes) > 10
    assert documented - codes == written - codes
    assert "model_locked" in documented


# ---------------------------------------------------------------- commands


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> dict[str, click.Command]:
    """{"account create": command} of the whole command line."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*path, name))
        else:
            found[" ".join((*path, name))] = command
    assert found
    return found


def command_lines() -> list[tuple[str, str]]:
    """Every `turnkeeper …` that the docs tell people to type: (page, arguments)."""
    found = []
    for page in PAGES:
        whole = page.read_text()
        for typed in (*blocks(whole, "sh", "bash"), *spans(whole)):
            found += [(page.name, line) for line in re.findall(r"(?:^|[\s(]|bin/)turnkeeper ([a-z-][^|)`\n]*)", typed)]
    return found


def test_every_command_and_option_is_documented() -> None:
    rows = table(section(OPERATE, "Commands"))
    documented = {
        " ".join(re.findall(r"(?<= )[a-z]+\b", bare(typed))): set(re.findall(r"--[a-z]+", typed + told))
        for typed, told in rows
    }
    assert documented == {
        name: {option.opts[0] for option in command.params if isinstance(option, click.Option)}
        for name, command in commands().items()
    }


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_in_the_docs_parses(page: str, line: str) -> None:
    arguments = [ABSENT if word == "ID" else word for word in shlex.split(line, comments=True)]
    command: click.Command = main
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        assert arguments[0] in command.commands, f"{page}: turnkeeper {line}"
        command = command.commands[arguments.pop(0)]
    with suppress(click.exceptions.Exit):  # one such as --version does all it does while it is parsed
        command.make_context("turnkeeper", arguments)


def test_the_docs_have_command_lines_of_their_own() -> None:
    assert len({line for _, line in command_lines()}) >= 8


def test_every_make_target_in_the_docs_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    typed = [
        typed for page in PAGES for typed in (*blocks(page.read_text(), "sh", "bash", ""), *spans(page.read_text()))
    ]
    named = {target for line in typed for target in re.findall(r"^make ([a-z]+)\b", line, re.MULTILINE)}
    assert {"run", "test"} <= named
    assert named <= targets


# ---------------------------------------------------------------- security


def test_everything_that_is_tried_against_security_has_its_tests() -> None:
    page = read("docs/security.md")
    rows = re.findall(r"^\| (\d+) \| .+ \| (.+) \|$", page, re.M)
    numbers = [int(number) for number, _ in rows]
    assert numbers[:52] == list(range(1, 53)) and numbers == sorted(set(numbers))
    there = {
        test
        for file in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.M)
    }
    for number, cell in rows:
        assert spans(cell), number
        assert set(spans(cell)) <= there, f"{number}: there is no {set(spans(cell)) - there}"


# ---------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for is_picture, target in links(page.read_text()):
        if is_picture or target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file.read_text()), f"{page.name} links to {target}"


def test_every_picture_is_there() -> None:
    pictures = [(page, target) for page in PAGES for is_picture, target in links(page.read_text()) if is_picture]
    assert pictures
    assert [target for page, target in pictures if not (page.parent / target).is_file()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, to_read = set(), [ROOT / "README.md"]
    while to_read:
        page = to_read.pop()
        reached.add(page)
        for _, target in links(page.read_text()):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in reached:
                to_read.append(file)
    assert {page for page in PAGES if page.parent.name != "decisions"} - reached == set()


# ---------------------------------------------------------------- the models that answer from, and as, the docs

#: what pages and the guide suggest asking → the section that answers it
ANSWERS = {
    "How long does a session live?": "docs/sessions.md § How long a session lives",
    "How do I add a model server?": "docs/models.md § Adding a model server or a provider",
    "How do I add my own models?": "docs/models.md § Adding a model server or a provider",
    "What happens when I reach a limit?": "docs/sessions.md § What happens at a limit",
    "How do I switch the model of a session?": "docs/sessions.md § Switching the model of a session",
}


def test_the_questions_that_are_suggested_are_answered_by_the_right_section(fresh: Server) -> None:
    with fresh.guest() as visitor:
        offered = re.findall(r'name="prompt" value="([^"]+)"', visitor.get("/", headers={"Accept": "text/html"}).text)
    assert len(offered) >= 3
    search = DocsSearch.of(DOCS)
    for question in {*offered, *SUGGESTIONS}:
        assert search.find(question)[0].source == ANSWERS[question]


@pytest.mark.parametrize(
    ("question", "source"),
    [
        ("How do I make a backup?", "docs/operate.md § Making a backup"),
        (
            "What happens to my reply when I close the tab?",
            "docs/sessions.md § What happens to a reply when I close the tab",
        ),
        ("How do I create a token?", "docs/operate.md § Making a token for a script"),
        ("Who can see my chats?", "docs/sessions.md § Who can see your chats"),
        ("How do I become the admin?", "docs/operate.md § The first admin"),
        ("What does session_busy mean?", "docs/errors.md § session_busy"),
        ("What if the server crashes?", "docs/operate.md § What a crash costs"),
        ("Does it work with Ollama?", "docs/models.md § Model servers that are found by themselves"),
        ("How do I stop a reply?", "docs/sessions.md § Stopping a reply"),
        ("Can I change my password?", "docs/operate.md § Changing a password"),
    ],
)
def test_a_question_people_have_is_answered_by_the_right_section(question: str, source: str) -> None:
    assert DocsSearch.of(DOCS).find(question)[0].source == source


def test_the_directives_of_echo_do_what_the_docs_say() -> None:
    told = section(MODELS, "Trying things out with echo")
    directives = re.findall(r"^- `(/[^`]+)`", told, re.MULTILINE)
    plans = {directive.split()[0]: Plan.of(directive) for directive in directives}
    assert list(plans) == ["/tokens", "/text", "/reason", "/delay", "/error", "/hang"]
    assert len(plans["/tokens"].tokens) == 500
    assert "".join(plans["/text"].tokens) == "Once upon a time"
    assert "".join(plans["/reason"].reasoning) == "Let me see"
    assert plans["/delay"].delay_seconds == 0.02
    assert (plans["/error"].fault, len(plans["/error"].tokens)) == ("429", 10)
    assert (plans["/hang"].fault, len(plans["/hang"].tokens)) == ("hang", 3)


# ---------------------------------------------------------------- what people are told to run


def steps(script: str) -> list[tuple[str, str]]:
    """[(commands, what they are said to print)]: the comment lines after a command are its output."""
    found: list[tuple[str, str]] = []
    for part in re.split(r"\n\n", script.strip()):
        lines = part.splitlines()
        typed = [line for line in lines if not line.startswith("# ")]
        found.append(("\n".join(typed), "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))))
    return found


def run_as_told(server: Server, script: str) -> None:
    """Run a block of the docs line by line in one shell, and look for what it says comes out; `…` is anything."""
    script = script.replace("http://127.0.0.1:8000", server.url)
    script = script.replace(".venv/bin/turnkeeper", f"{shlex.quote(sys.executable)} -m turnkeeper")
    script = re.sub(r"^turnkeeper ", f"{shlex.quote(sys.executable)} -m turnkeeper ", script, flags=re.MULTILINE)
    script = re.sub(r"^python3 ", f"{shlex.quote(sys.executable)} ", script, flags=re.MULTILINE)
    told = steps(script)
    assert told
    mark = "=== the next step ==="
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"\necho '{mark}'\n".join(typed for typed, _ in told)],
        cwd=server.folder,
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for (typed, expected), printed in zip(told, done.stdout.split(mark), strict=True):
        place = 0
        for fragment in re.split(r"…|\n", expected):
            found = printed.find(fragment.strip(), place)
            assert found >= 0, f"{typed}\nprinted\n{printed}\nwithout “{fragment}”"
            place = found + len(fragment.strip())


def test_the_conversation_in_the_readme_goes_as_it_says(fresh: Server) -> None:
    as_guest, with_token = blocks(section(README, "The same from a script"), "bash")
    assert len(steps(as_guest)) >= 5
    run_as_told(fresh, as_guest)
    run_as_told(fresh, with_token)


def test_a_backup_made_as_the_docs_say_is_whole(fresh: Server) -> None:
    command, back = blocks(section(OPERATE, "Making a backup"), "sh")
    run_as_told(fresh, command)
    assert (
        back.strip() == "turnkeeper restore backup.db"
    )  # and is refused while the server runs: tests/web/test_backup.py
    copy = sqlite3.connect(fresh.folder / "backup.db")
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert copy.execute("SELECT count(*) FROM model").fetchone()[0] >= 2
    copy.close()


def database_owner(browser: httpx.Client) -> str:
    """Under which name a browser makes a session now."""
    return str(browser.post("/session/create").json()["owner"]["name"])
