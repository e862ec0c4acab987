"""What has happened in this process since it began: figures for whoever watches over it, never part of a decision.

No figure is told apart by a session, an account or an address.
"""

from collections import Counter
from collections.abc import Callable

from db.tables import Turn

#: upper ends of the waits for the first text, in seconds
WAITS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Counts:
    """Counters, which only grow."""

    def __init__(self) -> None:
        #: {(model, how it ended): turns}
        self.turns: Counter[tuple[str, str]] = Counter()
        #: {(model, prompt · reply): tokens}
        self.tokens: Counter[tuple[str, str]] = Counter()
        #: {model: nano-money}
        self.cost_nanos: Counter[str] = Counter()
        #: {(model, end of the bucket): turns whose first text came within it}
        self.waits: Counter[tuple[str, float]] = Counter()
        #: {model: turns that had text}, and the seconds until then
        self.waited: Counter[str] = Counter()
        self.waited_seconds: dict[str, float] = {}
        #: {code: refusals told}
        self.refusals: Counter[str] = Counter()
        #: {status: answers begun}
        self.answers: Counter[int] = Counter()

    def ended(self, turn: Turn) -> Callable[[], None]:
        """What to do once the end of a turn is committed."""
        model, state = turn.model, turn.state
        prompt_tokens, reply_tokens, cost = turn.prompt_tokens, turn.reply_tokens, turn.cost_nanos
        first = (turn.first_text_at - turn.created_at).total_seconds() if turn.first_text_at is not None else None

        def count() -> None:
            self.turns[model, state] += 1
            self.tokens[model, "prompt"] += prompt_tokens
            self.tokens[model, "reply"] += reply_tokens
            self.cost_nanos[model] += cost
            if first is not None:
                self.waited[model] += 1
                self.waited_seconds[model] = self.waited_seconds.get(model, 0.0) + max(0.0, first)
                for end in WAITS:
                    self.waits[model, end] += first <= end

        return count
