"""What of a transcript a model is shown, and how many tokens that is."""

from collections.abc import Iterable, Sequence

from db.tables import Turn
from services.catalogue import Entry
from services.clients import Message
from services.errors import ContextOverflow
from services.text import tokens_of

#: how far back a turn looks for context
CONTEXT_TURNS = 200
#: how far at first: seldom do more fit
FEW_TURNS = 20
#: what a reply is assumed to use at most where the model states no cap
REPLY_TOKENS = 4096
#: what a model's template puts around each message
TEMPLATE_TOKENS = 4


def fit(
    prompt: str, transcript: Sequence[Turn], entry: Entry, instructions: str = ""
) -> tuple[tuple[Message, ...], int]:
    """The messages for a prompt after the latest turns that fit the model's window, and how many turns those are.

    The session's instructions always go along; a turn without a reply does not. Raises ContextOverflow where not even
    the prompt fits with them. A model whose window is not known takes everything.
    """
    first = (Message(role="system", text=instructions),) if instructions else ()
    messages, kept = [Message(role="user", text=prompt)], 0
    room = entry.context_tokens - reply_tokens(entry) if entry.context_tokens else 10**9
    room -= tokens_asked((*first, *messages))
    if room < 0:
        raise ContextOverflow(f"This text does not fit into the window of “{entry.label}”.")
    for turn in reversed(transcript):
        said = (
            [Message(role="assistant", text=turn.reply), Message(role="user", text=turn.prompt)] if turn.reply else []
        )
        room -= tokens_asked(said)
        if room < 0:
            break
        kept += bool(said)
        messages += said
    return (*first, *reversed(messages)), kept


def tokens_asked(messages: Iterable[Message]) -> int:
    """An estimate of the tokens of a transcript, as a model is shown it."""
    return sum(tokens_of(message.text) + TEMPLATE_TOKENS for message in messages)


def reply_tokens(entry: Entry) -> int:
    """What a reply is counted at before it is written: the model's cap, or what is assumed within its window."""
    return entry.max_reply_tokens or min(REPLY_TOKENS, entry.context_tokens // 2 or REPLY_TOKENS)
