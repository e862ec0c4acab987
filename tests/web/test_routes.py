"""The site map: every URL of it reaches its own handler, and nothing else answers."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from tests.web.wire import BROWSER, JSON, create, is_page, problem, refused
from web.app import create_app
from web.routes import ROUTES
from web.settings import Settings
from web.welcome import Models

SAMPLES = {"uuid": "01890000-0000-7000-8000-0000000000aa", "str": "some-text", "path": "some/text"}


def declared() -> list[tuple[str, str, HTTPRouteHandler]]:
    """(method, path, handler) of the whole site map."""
    return [
        (method, path, handler)
        for handler in ROUTES
        for path in sorted(handler.paths)
        for method in sorted(handler.http_methods - {"OPTIONS"})
    ]


def concrete(path: str) -> str:
    """A path with a sample in place of each parameter."""
    return re.sub(r"{\w+:(\w+)}", lambda found: SAMPLES[found[1]], path)


def names(rows: list[tuple[str, str, HTTPRouteHandler]]) -> list[str]:
    return [f"{method} {path}" for method, path, _ in rows]


ALL = declared()
POSTS = [row for row in ALL if row[0] == "POST"]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Litestar:
    """The application, wired and not started."""
    folder = tmp_path_factory.mktemp("app")
    return create_app(
        Settings(database_url=f"sqlite:///{folder / 'x.db'}", secret_key="x" * 32, discover=False),
        Models([], [], None, []),
        lambda: None,
    )


def reached(app: Litestar, method: str, path: str) -> Any:
    """The function of the handler that the router picks."""
    return app.asgi_router.handle_routing(path=path, method=method)[1].fn


def test_the_site_map_is_not_empty() -> None:
    assert len(ALL) > 25
    assert len(POSTS) > 10


@pytest.mark.parametrize(("method", "path", "handler"), ALL, ids=names(ALL))
def test_I12_every_declared_route_reaches_its_own_handler(
    app: Litestar, method: str, path: str, handler: HTTPRouteHandler
) -> None:
    assert reached(app, method, concrete(path)) is handler.fn


def test_no_two_handlers_share_a_method_and_path() -> None:
    assert len({(method, path) for method, path, _ in ALL}) == len(ALL)


def test_every_function_with_a_route_is_on_the_site_map() -> None:
    found = {
        name
        for file in (Path(__file__).parents[2] / "web" / "routes").rglob("*.py")
        for name in re.findall(r"^@(?:get|post|put|patch|delete)\(.*?^async def (\w+)", file.read_text(), re.S | re.M)
    }
    assert found == {handler.fn.__name__ for handler in ROUTES}


def test_the_application_serves_the_site_map_and_static_files_and_nothing_else(app: Litestar) -> None:
    served = {route.path for route in app.routes}
    assert {path for _, path, _ in ALL} <= served
    assert served - {path for _, path, _ in ALL} == {"/static/{file_path:path}"}


@pytest.mark.parametrize(("method", "path", "handler"), POSTS, ids=names(POSTS))
def test_every_post_reads_its_body_into_a_form(method: str, path: str, handler: HTTPRouteHandler) -> None:
    form = (handler.dependencies or {}).get("form")
    assert form is not None, "takes a body that nobody checks"
    assert hasattr(form.dependency, "struct")


@pytest.mark.parametrize(("method", "path", "handler"), ALL, ids=names(ALL))
def test_every_handler_documents_what_it_answers(method: str, path: str, handler: HTTPRouteHandler) -> None:
    assert "answers" in handler.opt
    assert (handler.fn.__doc__ or "").strip()


def test_a_get_never_takes_a_body() -> None:
    for method, path, handler in ALL:
        if method == "GET":
            assert "form" not in (handler.dependencies or {}), path


# ---------------------------------------------------------------- static before parametrised


def test_I12_a_fixed_path_wins_over_a_parameter(app: Litestar) -> None:
    fixed = [row for row in ALL if "{" not in row[1]]
    assert fixed
    for method, path, handler in fixed:
        assert reached(app, method, path) is handler.fn


def test_create_is_not_the_id_of_a_session(guest: httpx.Client) -> None:
    assert guest.post("/session/create", json={}).status_code == 201
    problem(guest.get("/session/create"), 405, "method_not_allowed")


def test_switch_is_not_the_name_of_a_model(guest: httpx.Client) -> None:
    session = create(guest)
    before = guest.get("/models").json()
    switched = guest.post("/models/switch", json={"session_id": session["id"], "model": "smart"})
    assert switched.status_code == 200
    assert switched.json()["to"] == "smart"
    problem(guest.get("/models/switch"), 405, "method_not_allowed")
    problem(guest.post("/models/switch", json={"session_id": session["id"], "model": "switch"}), 422, "model_unknown")
    after = guest.get("/models").json()
    assert [model["id"] for model in after["models"]] == [model["id"] for model in before["models"]]


# ---------------------------------------------------------------- what is not there

UNKNOWN = (
    "/nothing",
    "/models/none",
    "/session/x/y/z",
    "/chat/none",
    "/session/none",
    "/admin/none",
    "/static/none.js",
)


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_url_is_a_404_problem_to_a_script(guest: httpx.Client, path: str) -> None:
    problem(guest.get(path), 404, "not_found")


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_unknown_url_is_a_404_page_to_a_browser(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path)
    assert answer.status_code == 404
    assert is_page(answer)


@pytest.mark.parametrize("path", sorted({concrete(path) for _, path, _ in ALL}))
def test_a_method_that_a_url_does_not_take_is_a_405_that_names_those_it_takes(guest: httpx.Client, path: str) -> None:
    takes = {method for method, declared, _ in ALL if concrete(declared) == path}
    for method in ("PUT", "PATCH", "DELETE", *({"GET", "POST"} - takes)):
        answer = guest.request(method, path)
        refused(answer, 405, "method_not_allowed")
        assert takes <= set(answer.headers["allow"].replace(" ", "").split(","))


def test_a_wrong_method_is_a_page_to_a_browser(visitor: httpx.Client) -> None:
    answer = visitor.get("/chat")
    assert answer.status_code == 405
    assert is_page(answer)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/models", "/static/icon.svg"])
def test_head_is_get_without_the_body(guest: httpx.Client, path: str) -> None:
    """RFC 9110 §9.1: every general-purpose server supports GET and HEAD."""
    answer = guest.head(path)
    assert answer.status_code == 200
    assert answer.content == b""


def test_head_opens_no_stream(guest: httpx.Client) -> None:
    for path in (f"/session/{SAMPLES['uuid']}/events", f"/chat/{SAMPLES['uuid']}/events"):
        assert guest.head(path).status_code in (404, 405)


def test_a_slash_at_the_end_changes_nothing(guest: httpx.Client) -> None:
    assert guest.get("/models/", headers={"Accept": JSON}).json() == guest.get("/models").json()


@pytest.mark.parametrize("path", ["/", "/session", "/models", "/limits", "/login"])
def test_pages_open_without_an_account(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path, headers={"Accept": BROWSER})
    assert answer.status_code == 200
    assert is_page(answer)
