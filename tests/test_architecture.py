"""Who may import whom, and what may be written where."""

import ast
import hashlib
import re
from importlib.metadata import version
from pathlib import Path
from typing import TypeGuard

import pytest

from benchmarks.sbom import bill

ROOT = Path(__file__).parents[1]
#: layer → what it may not import
FORBIDDEN = {
    "db": {"services", "web", "litestar", "jinja2"},
    "services": {"web", "litestar", "jinja2", "piccolo", "asyncpg", "aiosqlite"},
    "web": {"piccolo", "asyncpg", "aiosqlite", "sqlite3"},
}
#: HTTP's words have no place in the services
HTTP_WORDS = re.compile(r"\b(status_code|HTTPException|Response|Request|cookie_jar|hx_|text/html)\b")


def modules(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert found, layer
    return found


def imports(path: Path) -> set[str]:
    """Every module a file imports, whole names."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_a_layer_imports_only_what_lies_below_it(layer: str) -> None:
    for path in modules(layer):
        wrong = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[layer]}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_web_sees_tables_only_as_types() -> None:
    """A view is built from a row; nothing in web/ queries or makes one."""
    for path in modules("web"):
        source = path.read_text()
        tables = {name for name in imports(path) if name.startswith("db.tables.")}
        assert not tables or path.name in ("views.py", "live.py", "activity.py"), path
        assert not re.search(r"\.(select|insert|objects|raw)\(|\bdb\.tables\b.*import \*", source), path
        engine = {name for name in imports(path) if name.startswith("db.engine")}
        assert not engine or path.name in ("app.py", "__main__.py", "console.py", "deployment.py", "check.py"), path


def test_the_services_know_no_http() -> None:
    for path in modules("services"):
        if path.parent.name != "clients":  # a provider is spoken to over HTTP
            assert not HTTP_WORDS.search(path.read_text()), path


#: SessionService with its collaborators; accounts write what is theirs
WRITERS = {
    "session_service.py",
    "turns.py",
    "records.py",
    "refusals.py",
    "admission.py",
    "rates.py",
    "holders.py",
    "idempotency.py",
    "governance.py",
    "moves.py",
    "configuration.py",
    "changes.py",
    "accounts.py",
    "access.py",
    "upkeep.py",
    "membership.py",
    "inspection.py",
    "trials.py",
    "unit_of_work.py",
    "render_timeouts.py",
}


def writing_methods() -> set[str]:
    """The methods of DbSession that write rows, by themselves or through one another."""
    (tree,) = (node for node in ast.parse((ROOT / "db/db_session.py").read_text()).body if _is_db_session(node))
    bodies = {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}
    writing = re.compile(r"\.(insert|update|delete)\(|[\'\"](INSERT|UPDATE|DELETE) ")
    found = {name for name, body in bodies.items() if writing.search(body)}
    while more := {
        name for name, body in bodies.items() if any(f"self.{one}(" in body for one in found) and name not in found
    }:
        found |= more
    return found


def _is_db_session(node: ast.AST) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and node.name == "DbSession"


def test_I1_only_the_service_and_its_collaborators_write() -> None:
    names = writing_methods()
    assert {"add", "update", "record", "take_from_bucket", "drop_rule", "add_pieces", "claim_key"} <= names
    assert not {"find_session", "list_path", "lock", "rules", "text_of"} & names
    calls = re.compile(rf"db_session\)?\.({'|'.join(sorted(names))})\(|\._db_session\.({'|'.join(sorted(names))})\(")
    writers = {path.name for path in modules("services") if calls.search(path.read_text())}
    assert {"session_service.py", "turns.py"} <= writers <= WRITERS
    for path in modules("web"):
        assert not calls.search(path.read_text()), path


def test_the_model_of_a_session_is_written_in_one_place() -> None:
    assigned, passed = [], []
    for layer in ("services", "web", "db"):
        for path in modules(layer):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and node.attr == "last_model" and isinstance(node.ctx, ast.Store):
                    assigned.append((path.name, node.lineno))
                elif isinstance(node, ast.keyword) and node.arg == "last_model":
                    passed.append((path.name, ast.unparse(node.value)))
    assert len(assigned) == 1 and assigned[0][0] == "session_service.py", assigned
    assert set(passed) <= {("session_service.py", "session.last_model")}, passed


def test_only_settings_reads_the_environment() -> None:
    for layer in ("services", "web", "db"):
        for path in modules(layer):
            if "os.environ" in path.read_text():
                assert path.name in ("console.py", "engine.py", "systemd.py"), path


def test_templates_say_what_they_want_and_mark_nothing_safe() -> None:
    templates = sorted((ROOT / "web/templates").rglob("*.html"))
    assert templates
    for path in templates:
        text = path.read_text()
        assert text.startswith(f"{{# {path.relative_to(ROOT / 'web/templates')}: "), path
        assert not re.search(r"\|\s*safe|Markup\(|<script>|<style|\son\w+=|\sstyle=", text), path


def test_D1_every_form_that_changes_something_carries_a_key() -> None:
    forms = 0
    macro = re.search(r"macro hidden\(.*?endmacro", (ROOT / "web/templates/admin/_form.html").read_text(), re.S)
    assert macro and 'name="idempotency_key"' in macro[0]
    carries = ('name="idempotency_key"', '/_key.html"', "{{ hidden(")
    for path in sorted((ROOT / "web/templates").rglob("*.html")):
        for form in re.findall(r"<form\b[^>]*method=\"post\".*?</form>", path.read_text(), re.S):
            forms += 1
            assert any(key in form for key in carries), f"{path.name}: {form[:200]}"
    assert forms > 10


def test_nothing_turns_certificates_off_or_marks_text_safe() -> None:
    """Only what the sanitiser has let through is markup."""
    for layer in ("services", "web", "db"):
        for path in modules(layer):
            source = path.read_text()
            if path.relative_to(ROOT).as_posix() in ("web/markdown.py", "web/rendering.py"):
                source = re.sub(r"Markup\((|finished|html|written\(text\))\)", "", source)
            assert not re.search(r"verify\s*=\s*False|Markup\(|autoescape\s*=\s*False", source), path


def test_sql_is_never_formatted_from_values() -> None:
    """Every f-string of SQL is in DbSession or the engine, where only our own names go in."""
    for layer in ("services", "web"):
        for path in modules(layer):
            assert not re.search(r"f\"[^\"]*\b(SELECT|INSERT|UPDATE|DELETE)\b ", path.read_text()), path


def test_the_bill_of_materials_names_what_is_pinned_and_what_was_taken_from_elsewhere() -> None:
    told = bill()["components"]
    named = {(one["name"], one["version"]) for one in told}
    lock = (ROOT / "requirements.lock").read_text()
    assert len(named) == len(told) == len(re.findall(r"^\w", lock, re.M)) + 1
    assert ("litestar", version("litestar")) in named and ("msgspec", version("msgspec")) in named
    (htmx,) = [one for one in told if one["name"] == "htmx.org"]
    shipped = hashlib.sha256((ROOT / "static" / "vendor" / "htmx.js").read_bytes()).hexdigest()
    assert htmx["hashes"] == [{"alg": "SHA-256", "content": shipped}]


def test_every_dependency_is_pinned_with_its_hash() -> None:
    """And no host stands beside it: where packages come from is for whoever installs them to say."""
    for name in ("requirements.lock", "requirements-dev.lock"):
        lock = (ROOT / name).read_text()
        pinned = re.findall(
            r"^([\w.-]+)==\S+(?: ; [^\\\n]+)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.M
        )
        assert len(pinned) == len(re.findall(r"^\w", lock, re.M)) > 10, name
        assert "://" not in lock, name
