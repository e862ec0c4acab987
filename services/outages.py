"""What is said in the log when something is going to be tried again."""

import logging

from db.db_session import DatabaseUnavailable
from services.errors import StorageUnavailable


def tell(log: logging.Logger, text: str, error: Exception) -> None:
    """A line where the database is away, which is no fault of ours; the whole traceback for anything else."""
    cause = error.__cause__ if isinstance(error, StorageUnavailable) else error
    if isinstance(cause, DatabaseUnavailable):
        log.warning("%s: %s (%s)", text, cause.told.rstrip(".").replace("The", "the", 1), cause)
    else:
        log.error(text, exc_info=error)
