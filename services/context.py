"""What of a transcript a model is shown."""

from collections.abc import Sequence

from db.tables import Turn
from services.catalogue import Entry
from services.clients import Message
from services.errors import ContextOverflow
from services.text import tokens_of

#: how far back a turn looks for context
CONTEXT_TURNS = 200


def fit(prompt: str, transcript: Sequence[Turn], entry: Entry) -> tuple[tuple[Message, ...], int]:
    """The messages for a prompt after the latest turns that fit the model's window, and how many turns those are.

    Raises ContextOverflow where not even the prompt fits. A model whose window is not known takes everything.
    """
    room = entry.context_tokens - entry.max_reply_tokens if entry.context_tokens else 10**9
    room -= tokens_of(prompt)
    if room < 0:
        raise ContextOverflow(f"This text does not fit into the window of “{entry.label}”.")
    messages, kept = [Message(role="user", text=prompt)], 0
    for turn in reversed(transcript):
        room -= tokens_of(turn.prompt) + tokens_of(turn.reply or "")
        if room < 0:
            break
        kept += 1
        if turn.reply:
            messages += [Message(role="assistant", text=turn.reply), Message(role="user", text=turn.prompt)]
    return tuple(reversed(messages)), kept
