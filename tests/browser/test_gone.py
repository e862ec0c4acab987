"""A page whose reader has lost the right to it stops asking; one that was only cut off comes back."""

import time

from playwright.sync_api import Request, expect

from tests.browser.conftest import PASSWORD, Chat, sign_in


class Streams:
    """The streams that a page asks for from now on, and how many of them have ended."""

    def __init__(self, chat: Chat) -> None:
        self._asked: list[Request] = []
        self.ended = 0
        self._chat = chat
        chat.page.on("request", lambda request: self._asked.append(request) if "/events" in request.url else None)
        chat.page.on("requestfinished", self._end)
        chat.page.on("requestfailed", self._end)

    @property
    def asked(self) -> int:
        return len(self._asked)

    def _end(self, request: Request) -> None:
        self.ended += request in self._asked

    def wait(self, *, asked: int = 0, ended: int = 0) -> None:
        deadline = time.monotonic() + 60
        while self.asked < asked or self.ended < ended:
            assert time.monotonic() < deadline, (self.asked, self.ended)
            self._chat.page.wait_for_timeout(50)


def test_O4_a_page_of_somebody_whose_account_is_disabled_is_told_and_does_not_ask_again(chat: Chat) -> None:
    made = chat.server.run("account", "create", "leaver", "--permanent", stdin=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    sign_in(chat, "leaver")
    chat.begin("hello")
    chat.see("done")
    streams = Streams(chat)
    chat.page.reload()
    streams.wait(asked=1)
    began = time.monotonic()
    assert chat.server.run("account", "disable", "leaver", "--reason", "left").returncode == 0
    streams.wait(ended=1)
    assert time.monotonic() - began < 15
    expect(chat.notice).to_contain_text("no longer yours")
    # A page that was cut off asks again after half a second or so; this one does not.
    chat.page.wait_for_timeout(1500)
    assert (streams.asked, streams.ended) == (1, 1)


def test_a_page_whose_session_is_deleted_elsewhere_does_not_ask_again(chat: Chat) -> None:
    url = chat.begin("hello")
    chat.see("done")
    streams = Streams(chat)
    chat.page.reload()
    streams.wait(asked=1)
    deleted = chat.page.request.post(f"{url}/delete", headers={"Accept": "application/json"}, data={})
    assert deleted.status == 204
    streams.wait(ended=1)
    expect(chat.page.get_by_role("status")).to_contain_text("This chat was deleted. You can have it back")
    chat.page.wait_for_timeout(1500)
    assert streams.asked == 1
