"""The link that makes the first admin leads to where people reach the server (F9)."""

import pytest

from web.settings import load
from web.welcome import Models, Start, greet


@pytest.mark.parametrize(
    ("environment", "link", "others"),
    [
        ({}, "http://127.0.0.1:8000/setup/once", ""),
        ({"HOST": "::1"}, "http://[::1]:8000/setup/once", ""),
        ({"ALLOWED_HOSTS": "localhost,127.0.0.1"}, "http://127.0.0.1:8000/setup/once", ""),
        ({"ALLOWED_HOSTS": "chat.example.org"}, "http://chat.example.org:8000/setup/once", ""),
        (
            {"ALLOWED_HOSTS": "localhost,chat.example.org", "TRUSTED_PROXIES": "127.0.0.1"},
            "https://chat.example.org/setup/once",
            "",
        ),
        (
            {"ALLOWED_HOSTS": "chat.example.org,chat.example.com", "TRUSTED_PROXIES": "127.0.0.1", "HOST": "0.0.0.0"},
            "https://chat.example.org/setup/once",
            "https://chat.example.com",
        ),
        ({"ALLOWED_HOSTS": "2001:db8::1", "HOST": "::"}, "http://[2001:db8::1]:8000/setup/once", ""),
    ],
)
def test_the_set_up_link_names_the_public_host(
    environment: dict[str, str], link: str, others: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load({f"TURNKEEPER_{name}": value for name, value in environment.items()})
    greet(settings, Start(Models([], [], None, []), [], "once"))
    told = [*capsys.readouterr().err.splitlines(), ""]
    place = next(number for number, line in enumerate(told) if "/setup/" in line)
    assert told[place].rstrip().endswith(f" {link}")
    assert ("also works at" in told[place + 1]) is bool(others)
    assert others in told[place + 1]


def test_the_greeting_as_json_is_one_sentence_after_the_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "web.welcome"):
        greet(load({"TURNKEEPER_LOG_FORMAT": "json"}), Start(Models([], [], None, []), [], "once"))
    (told,) = caplog.messages
    assert ";;" not in told and "on loopback; the built-in models need neither; access" in told
