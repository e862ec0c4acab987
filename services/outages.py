"""What is said in the log when something is going to be tried again."""

import logging

from db.db_session import DatabaseUnavailable
from services.errors import StorageUnavailable


def tell(log: logging.Logger, text: str, error: Exception) -> None:
    """A line where the database is away, which is no fault of ours; the whole traceback for anything else."""
    if isinstance(error, DatabaseUnavailable | StorageUnavailable):
        log.warning("%s: the database does not answer (%s)", text, error.__cause__ or error)
    else:
        log.error(text, exc_info=error)
