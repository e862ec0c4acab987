"""The pages as the server writes them: escaped, each id once, every control a form that works without JavaScript."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import httpx
import pytest

from tests.web.running import Server
from tests.web.wire import BROWSER, HTMX, JSON, chat, create, session_of, streaming

FORM = {"Accept": BROWSER}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Form:
    """A form as a browser without JavaScript sees it."""

    def __init__(self, action: str, method: str) -> None:
        self.action, self.method = action, method
        self.fields: dict[str, str] = {}
        self.choices: dict[str, list[str]] = {}
        self.buttons = 0

    def submit(self, client: httpx.Client, **fields: str) -> httpx.Response:
        """Send it with some fields filled in, and go where it leads."""
        assert set(fields) <= set(self.fields), f"there is no field {set(fields) - set(self.fields)}"
        assert self.method == "post"
        return client.post(self.action, data=self.fields | fields, follow_redirects=True)


class Page(HTMLParser):
    """What a page holds: ids, forms, references between elements, and whether its tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.ids: Counter[str] = Counter()
        self.forms: list[Form] = []
        self.refers: list[tuple[str, str]] = []
        self.unnamed: list[str] = []
        self.open: list[str] = []
        self._select, self._labels, self._area = "", 0, ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in given}
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids[values["id"]] += 1
        for name in ("for", "form", "aria-labelledby", "aria-describedby"):
            if name in values:
                self.refers.append((name, values[name]))
        if tag == "form":
            self.forms.append(Form(values.get("action", ""), values.get("method", "get").lower()))
        form = self.forms[-1] if self.forms else None
        if tag == "label":
            self._labels += 1
        labelled = (
            self._labels
            or "aria-label" in values
            or values.get("id") in [id for name, id in self.refers if name == "for"]
        )
        shown = tag in ("input", "select", "textarea") and values.get("type") not in ("hidden", "submit")
        if shown and not labelled:
            self.unnamed.append(self.get_starttag_text() or tag)
        if form is not None and "name" in values and tag in ("input", "textarea", "select"):
            if values.get("type") not in ("radio", "checkbox") or "checked" in values:
                form.fields[values["name"]] = values.get("value", "")
            self._select = values["name"] if tag == "select" else self._select
            self._area = values["name"] if tag == "textarea" else ""
        if form is not None and tag == "option" and self._select:
            form.choices.setdefault(self._select, []).append(values.get("value", ""))
            if "selected" in values or len(form.choices[self._select]) == 1:
                form.fields[self._select] = values.get("value", "")
        if form is not None and tag == "button":
            form.buttons += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self._labels -= 1
        assert tag not in VOID
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def form(self, action: str) -> Form:
        """The form that goes to an address."""
        found = [form for form in self.forms if form.action.endswith(action)]
        assert found, f"no form goes to {action}, only to {[form.action for form in self.forms]}"
        return found[0]


def shown(client: httpx.Client, path: str) -> Page:
    answer = client.get(path, headers=FORM)
    assert answer.status_code < 500
    return Page(answer.text)


@pytest.fixture
def talk(guest: httpx.Client) -> dict[str, str]:
    """A session with two turns."""
    turn = chat(guest, "first words")
    return chat(guest, "second words", session_id=turn["session_id"])


PATHS = (
    "/", "/session", "/session/{session_id}", "/session/{session_id}/turns", "/session/{session_id}/journal",
    "/chat/{id}", "/models", "/limits", "/login", "/nothing", "/session?q=nothing", "/admin",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_every_id_is_there_once_and_every_reference_leads_to_one(
    guest: httpx.Client, ada: httpx.Client, talk: dict[str, str], path: str
) -> None:
    for client in (guest, ada) if path in ("/", "/admin", "/session/{session_id}") else (guest,):
        page = shown(client, path.format(**talk))
        assert page.open == [], "a tag is not closed"
        assert [id for id, count in page.ids.items() if count > 1] == []
        for name, id in page.refers:
            assert id in page.ids, f"{name}={id}"
        assert page.unnamed == [], "a field without a label"
        for form in page.forms:
            assert form.method in ("get", "post")
            if form.method == "post":
                assert form.action.startswith("/")


def test_a_whole_visit_without_javascript(visitor: httpx.Client) -> None:
    """Every step by the forms that the page before showed."""
    page = shown(visitor, "/")
    begin = page.form("/chat")
    assert begin.choices["model"] == ["", "fast", "smart", "guide"]
    answer = begin.submit(visitor, prompt="one two three", model="smart")
    id = str(answer.url.path).rsplit("/", 1)[1]
    assert "one two three" in answer.text
    page = Page(answer.text)
    assert page.form("/models/switch").fields["model"] == "smart"
    answer = page.form("/models/switch").submit(visitor, model="fast")
    assert session_of(visitor, id)["last_model"] == "fast"
    answer = Page(answer.text).form(f"/session/{id}/rename").submit(visitor, title="Named by hand")
    assert "Named by hand" in answer.text
    composer = Page(answer.text).form("/chat")
    assert composer.fields["session_id"] == id
    answer = composer.submit(visitor, prompt="four five")
    again = composer.submit(visitor, prompt="four five")
    assert again.status_code == 200
    assert session_of(visitor, id)["turn_count"] == 2, "the same page was sent twice, and is one message"
    assert "four five" in answer.text
    answer = Page(answer.text).form(f"/session/{id}/extend").submit(visitor)
    answer = Page(answer.text).form(f"/session/{id}/close").submit(visitor)
    assert session_of(visitor, id)["state"] == "closed"
    assert [form.action for form in Page(answer.text).forms if form.action == "/chat"] == []
    answer = Page(answer.text).form(f"/session/{id}/delete").submit(visitor)
    assert (str(answer.url.path), "Deleted “<bdi>Named by hand</bdi>”" in answer.text) == ("/session", True)
    assert visitor.get(f"/session/{id}", headers=FORM).status_code == 404
    answer = Page(answer.text).form(f"/session/{id}/restore").submit(visitor)
    assert str(answer.url.path) == f"/session/{id}"


def test_a_reply_can_be_stopped_without_javascript(guest: httpx.Client) -> None:
    answer = guest.post("/chat", data={"prompt": "/tokens 1000 /delay 20ms"}, headers=FORM, follow_redirects=True)
    page = Page(guest.get(answer.url.path, headers=FORM).text)
    assert "<noscript>" in answer.text or '<noscript><meta http-equiv="refresh"' in answer.text
    stop = next(form for form in page.forms if form.action.endswith("/stop"))
    guest.headers["accept"] = BROWSER
    stopped = stop.submit(guest)
    assert 'data-state="stopped"' in stopped.text


def test_a_refused_message_can_be_sent_again_from_the_page_that_refuses(guest: httpx.Client) -> None:
    turn = guest.post("/chat", data={"prompt": "/hang after 3"}, headers=FORM, follow_redirects=True)
    id = str(turn.url.path).rsplit("/", 1)[1]
    refused = guest.post(
        "/chat", data={"session_id": id, "prompt": "me & <you>", "idempotency_key": "k" * 20}, headers=FORM
    )
    assert refused.status_code == 409
    again = Page(refused.text).form("/chat")
    assert again.fields["session_id"] == id
    guest.headers["accept"] = BROWSER
    assert again.submit(guest, prompt="me & <you>").status_code == 409
    next(form for form in Page(turn.text).forms if form.action.endswith("/stop")).submit(guest)
    answer = again.submit(guest, prompt="me & <you>")
    assert answer.status_code == 200
    assert "me &amp; &lt;you&gt;" in answer.text


def test_a_long_transcript_is_read_page_by_page(guest: httpx.Client) -> None:
    id = create(guest)["id"]
    prompts = [f"word{number}." for number in range(56)]
    for prompt in prompts:
        chat(guest, prompt, session_id=id)
    seen: list[str] = []
    path, pages = f"/session/{id}", 0
    while path:
        html = guest.get(path, headers=FORM).text
        assert Page(html).open == []
        seen = re.findall(r"hx-ignore>(word\d+\.)</div>", html) + seen
        earlier = re.search(r'href="(/session/[^"]+\?before=[^"]+)"', html)
        path, pages = (earlier[1] if earlier else ""), pages + 1
        assert pages < 5
    assert seen == prompts
    assert pages == 2


# ---------------------------------------------------------------- what people and models say stays text

HOSTILE = {
    "a script": "<script>canary()</script>",
    "an image": '<img src="https://evil.example/x" onerror="canary()">',
    "an attribute": '" autofocus onfocus="canary()" x="',
    "an attribute in quotes": "' onmouseover='canary()",
    "a closing tag": "</textarea></title></style><svg onload=canary()>",
    "a partial": '<hx-partial hx-target="body" hx-swap="innerHTML">canary</hx-partial>',
    "a request": '<div hx-get="/session" hx-trigger="load">canary</div>',
    "a link": '<a href="javascript:canary()">canary</a>',
    "a comment": "<!-- canary --><!--[if IE]>canary<![endif]-->",
    "an entity": "&lt;script&gt;canary()&lt;/script&gt;",
    "a template": "{{ 7 * 7 }}{% raw %}canary{% endraw %}${7*7}",
    "a base": '<base href="https://evil.example/"><meta http-equiv="refresh" content="0;url=https://evil.example">',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_somebody_says_stays_text_on_every_page(guest: httpx.Client, ada: httpx.Client, text: str) -> None:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    session = create(guest, title=text[:120])
    id = session["id"]
    turn = chat(guest, text, session_id=id)
    assert turn["reply"] == text
    guest.post("/models/switch", json={"session_id": id, "model": "smart", "reason": text}).raise_for_status()
    for client, path in (
        (guest, f"/session/{id}"),
        (guest, f"/session/{id}/turns"),
        (guest, f"/chat/{turn['id']}"),
        (guest, "/session"),
        (guest, "/"),
        (guest, f"/session/{id}/journal"),
        (guest, f"/session?q={text[:20]}"),
        (guest, f"/login?next=/{text[:20]}"),
        (ada, "/admin"),
        (ada, f"/session/{id}"),
    ):
        html = client.get(path, headers=FORM).text
        assert_harmless(html, text)
        assert Page(html).open == []
    page = guest.get(f"/session/{id}", headers=FORM).text
    assert escaped.replace('"', "&#34;").replace("'", "&#39;") in page
    refused = guest.post("/chat", data={"session_id": "none", "prompt": text}, headers=FORM)
    assert_harmless(refused.text, text)
    for url, fields in (
        (f"/session/{id}/rename", {"title": text[:120]}),
        ("/chat", {"session_id": id, "prompt": text}),
        ("/chat", {"session_id": id, "prompt": text, "model": text}),
        ("/models/switch", {"session_id": id, "model": text}),
        ("/models/switch", {"session_id": id, "model": "fast", "reason": text}),
    ):
        for headers in (FORM, HTMX):
            answer = guest.post(url, data=fields, headers=headers)
            assert_harmless(answer.text, text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_name_that_somebody_types_stays_text_where_one_signs_in(server: Server, text: str) -> None:
    # From an address of its own: who fails to sign in too often keeps whoever comes from there out.
    with server.guest(address=f"127.0.1.{[*HOSTILE.values()].index(text)}") as client:
        for headers in (FORM, HTMX):
            answer = client.post("/login", data={"name": text, "password": "x" * 10}, headers=headers)
            assert_harmless(answer.text, text)


def assert_harmless(html: str, text: str) -> None:
    """Nothing of a hostile text is markup."""
    if "<" in text:
        assert text not in html
    for tag in re.findall(r"<[^>]*>", html):
        assert "canary" not in re.sub(r'(value|title|aria-label|content|href|placeholder)="[^"]*"', "", tag), tag
        # A link waits to be clicked.
        assert "evil.example" not in re.sub(r'^<a href="[^"]*"|(value|title|aria-label)="[^"]*"', "", tag), tag
    assert "49" not in re.findall(r"4949|>49<", html)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_model_says_stays_text_while_it_streams(guest: httpx.Client, text: str) -> None:
    session = create(guest)
    with streaming(guest, f"/session/{session['id']}/events", headers=HTMX) as stream:
        chat(guest, f"{text} /delay 1ms", session_id=session["id"])
        shown_so_far = ""
        for event in stream:
            shown_so_far += event.data
            if event.id.endswith(":end"):
                break
    assert_harmless(shown_so_far, text)


class Shown:
    """A reply on a page, as the fragments of its stream change it."""

    def __init__(self, turn_id: str) -> None:
        self._ids = {f"#turn-{turn_id}-reply", f"#turn-{turn_id}-tail"}
        self.finished, self.tail = "", ""

    def take(self, data: str) -> None:
        for target, swap, html in re.findall(
            r'<hx-partial hx-target="([^"]+)" hx-swap="(\w+)">(.*?)</hx-partial>', data, re.S
        ):
            if target not in self._ids:
                continue
            match swap:
                case "innerHTML":
                    begun = re.fullmatch(r'(.*)<div class="tail" id="[^"]+">(.*)</div>', html, re.S)
                    assert begun, html
                    self.finished, self.tail = begun[1], begun[2]
                case "beforebegin":
                    self.finished += html
                case "innerMorph":
                    self.tail = html
                case _:
                    raise AssertionError(swap)

    @property
    def html(self) -> str:
        return self.finished + self.tail


RICH = """# A <b>title</b>

1. one

2. two `code` & $x^2$

| a | b |
|---|--:|
| 1 | 2 |

```python
def f(): ...
```

$$
a
+ b
$$
  d\te\u2028f ' g"""


def test_27_a_reply_streamed_is_the_reply_reloaded(guest: httpx.Client) -> None:
    """Also for one who comes in the middle, and wherever the stream was cut."""
    session = create(guest)
    with streaming(guest, f"/session/{session['id']}/events", headers=HTMX) as stream:
        turn = chat(guest, f"/delay 2ms {RICH}", session_id=session["id"])
        assert turn["reply"] == RICH
        shown, ids, states = Shown(turn["id"]), [], []
        for event in stream:
            shown.take(event.data)
            if event.id.startswith(turn["id"]):
                ids.append(event.id)
                states.append(shown.html)
            if event.id.endswith(":end"):
                break
    page = guest.get(f"/session/{session['id']}", headers=FORM).text
    reloaded = re.search(rf'id="turn-{turn["id"]}-reply">(.*?)</div>\s*<div class="foot"', page, re.S)
    assert reloaded and "<math" in reloaded[1] and "<table>" in reloaded[1] and "hl-keyword" in reloaded[1]
    assert states[-1] == reloaded[1]
    for after, state in zip(ids[:-1], states[:-1], strict=True):
        with streaming(guest, f"/session/{session['id']}/events", after=after, headers=HTMX) as stream:
            again = Shown(turn["id"])
            again.finished = state
            for event in stream:
                again.take(event.data)
                if event.id.endswith(":end"):
                    break
        assert again.html == reloaded[1], after


# ---------------------------------------------------------------- compressed


def test_pages_are_compressed_and_streams_are_not(guest: httpx.Client, talk: dict[str, str]) -> None:
    for path in ("/", "/session", "/static/vendor/htmx.js", "/openapi.json"):
        plain = guest.get(path, headers={"Accept-Encoding": "identity"})
        small = guest.get(path, headers={"Accept-Encoding": "gzip"})
        assert small.headers.get("content-encoding") == "gzip", path
        assert "accept-encoding" in small.headers.get("vary", "").lower()
        assert "content-encoding" not in plain.headers
        if path.startswith(("/static", "/openapi")):
            assert small.content == plain.content
    with streaming(guest, f"/chat/{talk['id']}/events", headers={"Accept-Encoding": "gzip"}) as stream:
        assert "content-encoding" not in stream.response.headers
        assert stream.rest()[-1].name == "end"
    with streaming(
        guest, "/chat", method="POST", json={"prompt": "x " * 2000}, headers={"Accept-Encoding": "gzip"}
    ) as stream:
        assert "content-encoding" not in stream.response.headers
        assert stream.rest()[-1].name == "end"


def test_a_part_of_the_page_is_no_page(guest: httpx.Client, talk: dict[str, str]) -> None:
    """An answer to a verb only lists what changes: each part has its place, and none is the whole."""
    id = talk["session_id"]
    for url, fields in (
        (f"/session/{id}/rename", {"title": "New"}),
        (f"/session/{id}/extend", {}),
        ("/models/switch", {"session_id": id, "model": "smart"}),
        (f"/chat/{talk['id']}/stop", {}),
        (f"/session/{id}/close", {}),
    ):
        answer = guest.post(url, data=fields, headers=HTMX | {"Accept": "*/*"})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        outside = re.sub(r"<hx-partial .*?</hx-partial>", "", answer.text, flags=re.S).strip()
        assert outside == "", outside
        parts = re.findall(r'<hx-partial hx-target="#([^"\[]+)[^>]*hx-swap="(\w+)"', answer.text)
        assert parts
        for part, swap in parts:
            if swap == "outerHTML" and not part.startswith(("row-", "after-")):
                assert f'id="{part}"' in answer.text, part
        for one, other in pairwise(sorted(part for part, _ in parts)):
            assert one != other, "one place is written twice"


def test_json_and_page_tell_the_same_model(guest: httpx.Client) -> None:
    """M8, on every page."""
    for model in (None, "smart", "fast"):
        session = create(guest, **({"model": model} if model else {}))
        page = guest.get(f"/session/{session['id']}", headers=FORM).text
        assert f"<strong data-current-model>{session['current_model']['id']}</strong>" in page
        listed = guest.get("/session", headers={"Accept": JSON}).json()["sessions"][0]
        assert listed["current_model"]["id"] == session["current_model"]["id"]
        assert listed["current_model"]["source"] == session["current_model"]["source"]
        with streaming(guest, "/chat", method="POST", json={"session_id": session["id"], "prompt": "x"}) as stream:
            assert stream.next("turn").json["model"] == session["current_model"]["id"]
            stream.rest()


def test_a_switch_stands_before_the_turn_that_brought_it_along_and_the_first_model_is_none(
    visitor: httpx.Client,
) -> None:
    turn = chat(visitor, "canary of the first", model="smart")
    chat(visitor, "canary of the second", session_id=turn["session_id"], model="fast")
    page = visitor.get(f"/session/{turn['session_id']}", headers=FORM).text
    lines = [found.start() for found in re.finditer('class="quiet-line"', page)]
    log = page[page.index('role="log"') :]
    first, second = log.index("canary of the first"), log.index("canary of the second")
    assert first < log.index("You switched from smart to fast") < second
    assert len(lines) == 1
