"""What comes into a new session from outside: a transcript exported elsewhere, or one that a client tells.

Nothing of it was called or charged here, and its turns say so: each is a copy of a turn that is not ours.
"""

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec

from services.errors import InvalidRequest
from services.outcomes import End
from services.text import PROMPT_CHARACTERS, TITLE_CHARACTERS, checked_line, normalized_lines, storable

#: what a told turn is a copy of: nothing that has an id
TOLD = UUID(int=0)
#: as long as a provider's reply may become here
REPLY_CHARACTERS = 1_000_000


class BroughtTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One ended turn from outside."""

    prompt: str
    reply: str
    reasoning: str = ""
    #: the place of the turn before it among those brought; None for a first one
    after: int | None
    #: as it was called there; empty where nobody says
    model: str = ""
    #: why that one, as a word and as a sentence
    model_source: str = ""
    model_reason: str = ""
    state: End = "done"
    error_code: str | None = None
    error_detail: str | None = None
    prompt_tokens: int = 0
    reply_tokens: int = 0
    estimated: bool = True
    cost_nanos: int = 0
    context_left_out: int = 0
    #: None for now
    created_at: datetime | None = None
    first_text_at: datetime | None = None
    first_reply_at: datetime | None = None
    ended_at: datetime | None = None
    copied_from: UUID = TOLD


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """A whole session from outside."""

    #: each behind the one it follows
    turns: tuple[BroughtTurn, ...] = ()
    #: the place of the last turn of the transcript shown; None for none
    head: int | None = None
    title: str = ""
    opening: str = ""
    instructions: str = ""
    #: the model it was on; one that cannot be used here is left aside
    model: str | None = None

    @classmethod
    def told(cls, instructions: str, exchanges: Iterable[tuple[str, str]]) -> "Brought":
        """A conversation as a client tells it: prompts with their replies, oldest first. Replies stay as they are."""
        turns = tuple(
            BroughtTurn(prompt=normalized_lines(prompt), reply=reply, after=place - 1 if place else None)
            for place, (prompt, reply) in enumerate(exchanges)
        )
        return cls(turns=turns, head=len(turns) - 1 if turns else None, instructions=normalized_lines(instructions))

    def check(self) -> None:
        """Raise InvalidRequest for what no row may hold."""
        _check(self.instructions, PROMPT_CHARACTERS, "instructions")
        for line, field in ((self.title, "title"), (self.opening, "opening")):
            if checked_line(line, TITLE_CHARACTERS, field) != line:
                raise InvalidRequest(f"The {field} is one line without blanks around it.", field=field)
        for turn in self.turns:
            _check(turn.prompt, PROMPT_CHARACTERS, "prompt")
            _check(turn.reply, REPLY_CHARACTERS, "reply")
            _check(turn.reasoning, REPLY_CHARACTERS, "reasoning")
            for text in (
                *(turn.model, turn.model_source, turn.model_reason),
                *(turn.error_code or "", turn.error_detail or ""),
            ):
                storable(text)


def _check(text: str, limit: int, field: str) -> None:
    if len(storable(text)) > limit:
        raise InvalidRequest(f"{field.capitalize()} of more than {limit:,} characters are not taken.", field=field)
