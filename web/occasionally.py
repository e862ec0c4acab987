"""A line of the log for something that anybody can cause as often as they like: at most one a minute, with a count."""

import logging
import time
from contextvars import Context

#: between two lines about the same thing
QUIET_SECONDS = 60.0


class Occasionally:
    """Logs that something happened, and how often it did since the line before."""

    def __init__(self, log: logging.Logger, text: str) -> None:
        self._log, self._text = log, text
        self._since_then = 0
        self._again_at = float("-inf")

    def tell(self) -> None:
        """Count one more; log a line unless there was one just now."""
        self._since_then += 1
        if (now := time.monotonic()) >= self._again_at:
            # Of no request: it may be noticed in the midst of another one.
            Context().run(self._log.warning, "%s (%d since the last such line)", self._text, self._since_then)
            self._again_at, self._since_then = now + QUIET_SECONDS, 0
