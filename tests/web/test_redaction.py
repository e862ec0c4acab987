"""No secret is shown: by `config show`, by `check`, in an error, nor in a traceback (A10)."""

import json
from pathlib import Path

import pytest

from services.client_pool import Provider
from services.redaction import without_secrets
from tests.web.test_command_line import Here
from web.redaction import redacted
from web.settings import load, shown

#: a secret may be anything in an address but its scheme, its host and a path that can be read
ADDRESSES = {
    "https://canary@host/v1": "https://(set)@host/v1",
    "https://canary:@host/v1": "https://(set)@host/v1",
    "https://:canary@host/v1": "https://(set)@host/v1",
    "redis://:canary@host:6379/0": "redis://(set)@host:6379/0",
    "redis://canary@host:6379/0": "redis://(set)@host:6379/0",
    "rediss://ann:canary@host/0?password=canary": "rediss://(set)@host/0?password=(set)",
    "unix://ann:canary@/run/redis.sock?db=1": "unix://(set)@/run/redis.sock?db=(set)",
    "postgresql://ann:can%61ry@db,db2:5432/chat": "postgresql://(set)@db,db2:5432/chat",
    "postgresql://ann@canary@db/chat": "postgresql://(set)@db/chat",
    "https://host/v1?canary": "https://host/v1?(set)",
    "https://host/v1?api-version=canary&key=canary": "https://host/v1?api-version=(set)&key=(set)",
    "https://host/v1#canary": "https://host/v1#(set)",
    "https://[canary": "(set)",
    "https://host/v1/sk-canary0canary0canary0/x": "https://host/v1/(set)/x",
    "https://host/canary_0123456789-abcdef": "https://host/(set)",
    "https://host/openai/deployments/gpt-4o-mini": "https://host/openai/deployments/gpt-4o-mini",
    "postgres:ann:canary@host/x": "(set)",
    "redis:canary@host/0": "(set)",
    "https://host/v1": "https://host/v1",
    "sqlite:///var/turnkeeper.db": "sqlite:///var/turnkeeper.db",
    "": "",
}


@pytest.mark.parametrize(("address", "told"), ADDRESSES.items())
def test_an_address_is_shown_without_a_secret(address: str, told: str) -> None:
    assert without_secrets(address) == told
    assert "canary" not in told


@pytest.mark.parametrize(
    "address", [one for one in ADDRESSES if one.startswith("https://") and "[" not in one], ids=str
)
def test_config_show_and_a_traceback_tell_no_secret_of_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("turnkeeper.toml").write_text(f'[[providers]]\nid = "a"\nkind = "openai"\nbase_url = "{address}"\n')
    settings = load({"TURNKEEPER_REDIS_URL": "redis://:canary@host/0", "TURNKEEPER_SECRET_KEY": "canary" * 9})
    for told in (json.dumps(shown(settings)), repr(settings), repr(settings.providers), str(settings)):
        assert "canary" not in told


def test_an_error_that_names_a_secret_is_told_without_it() -> None:
    settings = load(
        {
            "TURNKEEPER_DATABASE_URL": "postgresql://ann:can%61ry-1@db/chat?password=canary-2",
            "TURNKEEPER_REDIS_URL": "redis://:canary-3@host/0",
            "OPENAI_API_KEY": "canary-4",
            "TURNKEEPER_SECRET_KEY": "canary-5" * 9,
        }
    )
    said = f"no: {settings.database_url} canary-1 {settings.redis_url} canary-4 {settings.secret_key}"
    told = redacted(said, settings)
    assert "canary" not in told and "can%61ry" not in told
    assert told.startswith("no: postgresql://") and "@host/0" in told
    assert redacted("connection refused", settings) == "connection refused"
    assert "canary" not in repr(Provider("a", "openai", base_url="https://canary@host/v1"))


def test_check_tells_no_secret_of_what_it_cannot_reach(tmp_path: Path) -> None:
    here = Here(tmp_path)
    here.environment = {
        **here.environment,
        "TURNKEEPER_REDIS_URL": "redis://:canary-one@127.0.0.1:9/0",
        "TURNKEEPER_DATABASE_URL": "postgresql://ann:canary-two@127.0.0.1:9/chat",
        "TURNKEEPER_DISCOVER": "false",
    }
    for command in (("check",), ("check", "--json"), ("migrate",), ("account", "list"), ("config", "show")):
        done = here.run(*command)
        assert done.stdout or done.stderr
        assert "canary" not in done.stdout + done.stderr, command
