"""Secrets of the settings kept out of texts that name them, such as those of errors."""

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from services.redaction import HIDDEN, KEY_IN_PATH
from web.settings import Settings

#: a shorter text may stand in an error by chance
SECRET_CHARACTERS = 4


def redacted(text: str, settings: Settings) -> str:
    """A text, such as an error's, in which no secret of the settings stands."""
    for secret in sorted(_secrets(settings), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(settings: Settings) -> Iterator[str]:
    """Every secret as it is written, and as it is meant."""
    for secret in _written(settings):
        for one in {secret, unquote(secret)}:
            if len(one) >= SECRET_CHARACTERS:
                yield one


def _written(settings: Settings) -> Iterator[str]:
    yield from (settings.secret_key, settings.openai_api_key, settings.anthropic_api_key)
    urls = [settings.database_url, settings.redis_url]
    for provider in settings.providers:
        yield provider.api_key
        urls.append(provider.base_url)
    for url in urls:
        try:
            parts = urlsplit(url)
        except ValueError:
            continue
        user, _, _ = parts.netloc.rpartition("@")
        name, colon, password = user.partition(":")
        yield from (user, password) if colon else ()
        # A key, and not the name that a database says in its errors.
        yield from (name, *KEY_IN_PATH.findall(parts.path)) if parts.scheme.startswith("http") else ()
        yield from (pair.partition("=")[2] or pair for pair in parts.query.split("&"))
        yield parts.fragment
