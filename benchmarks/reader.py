"""One reply as its reader has it, over any number of connections: the text so far, and where to go on."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx

from tests.web.wire import HTMX, STREAM, Event, Frames

#: more than anything takes on a machine with too much to do; a stream says something every 15 s
PATIENCE_SECONDS = 120.0


class Refused(Exception):
    """A stream was not opened; the answer says why."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.status_code}: {answer.text[:500]}")
        self.answer = answer


@asynccontextmanager
async def events_of(
    client: httpx.AsyncClient, url: str, *, method: str = "GET", after: str = "", page: bool = False, **request: Any
) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of a stream, for a script or a page; leaving the block is closing the connection. Raises Refused."""
    headers = (HTMX if page else {"Accept": STREAM}) | request.pop("headers", {})
    headers |= {"Last-Event-ID": after} if after else {}
    async with client.stream(method, url, headers=headers, **request) as answer:
        if answer.status_code != 200:
            await answer.aread()
            raise Refused(answer)

        async def events() -> AsyncIterator[Event]:
            frames = Frames()
            async for chunk in answer.aiter_raw():
                for event in frames.feed(chunk):
                    yield event

        async with aclosing(events()) as opened:
            yield opened


class Reader:
    """Follows one turn and holds every event against what it has been told before."""

    def __init__(self, client: httpx.AsyncClient, turn_id: str = "") -> None:
        self.client = client
        #: known from the first event on, where it was not given
        self.turn_id = turn_id
        #: the turn as it was told last
        self.turn: dict[str, Any] = {}
        self.text = ""
        #: what to say in `Last-Event-ID`
        self.place = ""
        self.has_ended = False

    async def send(self, body: dict[str, Any], *, key: str = "", url: str = "/chat", leave_after: int = 0) -> None:
        """Begin the turn by a POST and read its stream. Raises Refused, httpx.TransportError."""
        headers = {"Idempotency-Key": key} if key else {}
        await self._read(url, leave_after, method="POST", json=body, headers=headers)

    async def go_on(self, *, leave_after: int = 0, again: bool = False) -> None:
        """Read on from the place, or all of it once more. Raises Refused, httpx.TransportError."""
        if again:
            self.text, self.place = "", ""
        await self._read(f"/chat/{self.turn_id}/events", leave_after, after=self.place)

    async def _read(self, url: str, leave_after: int, **request: Any) -> None:
        """To the end, or until `leave_after` more pieces of text have come."""
        left = leave_after
        async with events_of(self.client, url, **request) as events:
            async for event in events:
                self.take(event)
                left -= event.name == "delta"
                if leave_after and left == 0:
                    return

    def take(self, event: Event) -> None:
        """Raises AssertionError where an event does not follow from those before."""
        told = event.json
        if event.name == "turn":
            self.turn = told
            self.turn_id = self.turn_id or told["id"]
            assert told["id"] == self.turn_id, f"another turn: {told}"
        elif event.name == "delta":
            assert not self.has_ended and told["turn_id"] == self.turn_id, f"text of another turn: {told}"
            assert told["offset"] == len(self.text), f"text at {told['offset']}, with {len(self.text)} characters shown"
            self.text += told["text"]
            self.place = event.id
            assert event.id == f"{self.turn_id}:{len(self.text)}", event.id
        elif event.name == "end":
            self.turn, self.place, self.has_ended = told, event.id, True
            assert told["reply"] == self.text, "the whole reply is not what was shown"
        else:
            assert event.name in ("session", "gone"), event


class PageReader:
    """Follows a session as a page does, and holds the places of its fragments against one another."""

    def __init__(self, client: httpx.AsyncClient, session_id: str, turn_id: str) -> None:
        self.client, self._session_id, self.turn_id = client, session_id, turn_id
        self.place, self._offset, self.has_ended = "", 0, False

    async def go_on(self, *, leave_after: int = 0) -> None:
        """Read on until the turn has ended, or so many more places have come."""
        left = leave_after
        url = f"/session/{self._session_id}/events"
        async with events_of(self.client, url, page=True, after=self.place) as events:
            async for event in events:
                if not event.id.startswith(self.turn_id):
                    continue
                self.place, (_, offset) = event.id, event.id.split(":")
                if offset == "end":
                    self.has_ended = True
                    return
                assert int(offset) > self._offset, f"{offset} comes after {self._offset}"
                self._offset = int(offset)
                left -= 1
                if leave_after and left == 0:
                    return


def turn_in(fragment: str) -> str:
    """The id of the turn that an answer to a page shows. Raises AssertionError."""
    found = re.search(r'id="turn-([0-9a-f-]{36})"', fragment)
    assert found, fragment[:500]
    return found[1]
