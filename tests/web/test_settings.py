"""The settings: what wins over what, where secrets come from, and how each mistake is named."""

import resource
from pathlib import Path

import pytest

from web.settings import Settings, SettingsError, load, shown

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, so that no turnkeeper.toml is found by accident."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "turnkeeper.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def refused(environ: dict[str, str] | None = None, **flags: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load(environ or {}, **flags)
    told = str(caught.value)
    assert "\n" not in told
    return told


# ---------------------------------------------------------------- what wins


def test_without_anything_the_defaults_hold() -> None:
    settings = load({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.database_url == "sqlite:///var/turnkeeper.db"
    assert settings.guests is True
    assert settings.hosts == {"127.0.0.1", "localhost", "::1"}
    assert (settings.models, settings.providers, settings.groups, settings.config_file) == ([], [], {}, "")


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default() -> None:
    assert load({}).port == 8000
    written("port = 8001")
    assert load({}).port == 8001
    assert load({"TURNKEEPER_PORT": "8002"}).port == 8002
    assert load({"TURNKEEPER_PORT": "8002"}, port=8003).port == 8003
    assert load({"TURNKEEPER_PORT": "8002"}, port=None).port == 8002


def test_the_file_can_be_elsewhere() -> None:
    written("port = 1111")
    written("port = 2222", "other.toml")
    settings = load({"TURNKEEPER_CONFIG": "other.toml"})
    assert (settings.port, settings.config_file) == (2222, "other.toml")
    assert "there is no file none.toml" in refused({"TURNKEEPER_CONFIG": "none.toml"})


def test_lists_are_written_with_commas() -> None:
    settings = load({"TURNKEEPER_ALLOWED_HOSTS": "Chat.Example, chat.example:8000 ,", "TURNKEEPER_TRUSTED_PROXIES": ""})
    assert settings.allowed_hosts == ["Chat.Example", "chat.example:8000"]
    assert "chat.example" in settings.hosts
    assert settings.trusted_proxies == []


@pytest.mark.parametrize(
    ("host", "guests"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.5", False)]
)
def test_guests_come_in_on_loopback_only(host: str, guests: bool) -> None:
    assert load({}, host=host).guests is guests
    assert load({"TURNKEEPER_ACCESS": "guests"}, host=host).guests is True
    assert load({"TURNKEEPER_ACCESS": "accounts"}, host=host).guests is False


def test_L4_the_time_zone_is_a_limit_of_the_instance() -> None:
    assert load({}).rules["*"].limits() == {"time_zone": "UTC"}
    written("time_zone = 'America/New_York'\n[groups.'*']\nconcurrent_turns = 5\n[groups.user]\nturns = '1/h'")
    rules = load({}).rules
    assert rules["*"].limits() == {"concurrent_turns": "5", "time_zone": "America/New_York"}
    assert rules["user"].limits() == {"turns": "1/h"}
    assert load({"TURNKEEPER_TIME_ZONE": "Asia/Kolkata"}).rules["*"].limits()["time_zone"] == "Asia/Kolkata"


# ---------------------------------------------------------------- secrets


def test_a_secret_can_be_in_a_file_of_its_own() -> None:
    written(f"{KEY}\n", "key")
    written("postgresql://u:p@h/d\n", "url")
    settings = load({"TURNKEEPER_DATABASE_URL_FILE": "url"})
    assert settings.database_url == "postgresql://u:p@h/d"
    assert load({"TURNKEEPER_SECRET_KEY": KEY}).secret() == KEY.encode()
    assert load({"TURNKEEPER_SECRET_KEY_FILE": "key"}).secret() == KEY.encode()
    written("redis://:p@h/1\n", "redis")
    assert load({"TURNKEEPER_REDIS_URL_FILE": "redis"}).redis_url == "redis://:p@h/1"
    assert "TURNKEEPER_DATABASE_URL_FILE: none cannot be read" in refused({"TURNKEEPER_DATABASE_URL_FILE": "none"})


def test_a_provider_s_key_comes_from_the_environment_or_a_file() -> None:
    written("file-key\n", "key")
    written(
        """
[[providers]]
id = "a"
kind = "openai"
api_key = "$MY_KEY"

[[providers]]
id = "b"
kind = "openai"
api_key_file = "key"

[[providers]]
id = "c"
kind = "openai"
api_key = "plain"
"""
    )
    settings = load({"MY_KEY": "from the environment"})
    assert [provider.api_key for provider in settings.providers] == ["from the environment", "file-key", "plain"]
    assert "providers[0].api_key: MY_KEY" in refused()


def test_the_secret_key_is_made_once_and_kept_from_others() -> None:
    first = load({}).secret()
    assert first == load({}).secret()
    assert len(first) >= 32
    assert Path("var/secret.key").stat().st_mode & 0o077 == 0
    Path("var/secret.key").write_text("short")
    with pytest.raises(SettingsError, match=r"secret_key_file"):
        load({}).secret()


def test_a_secret_key_that_could_not_be_written_leaves_nothing_behind() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, allowed[1]))  # as a full disk
    try:
        with pytest.raises(SettingsError, match=r"secret_key_file: .* cannot be made"):
            load({}).secret()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert list(Path("var").iterdir()) == []
    assert len(load({}).secret()) >= 32


SECRETS = {
    "TURNKEEPER_SECRET_KEY": f"canary-1-{KEY}",
    "OPENAI_API_KEY": "canary-2",
    "ANTHROPIC_API_KEY": "canary-3",
    "MY_KEY": "canary-4",
}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:canary-5@db/chat",
        "postgres://ann:canary-5%40%2F@db/chat",
        "postgresql://db/chat?user=ann&password=canary-5",
        "postgresql://ann:canary-5@db,db2:5432/chat",
    ],
)
def test_what_is_shown_hides_every_secret(url: str) -> None:
    written(
        """
[[providers]]
id = "a"
kind = "openai"
api_key = "$MY_KEY"
base_url = "http://ann:canary-6@127.0.0.1:9/v1?key=canary-7"
"""
    )
    redis = "rediss://ann:canary-8@cache:6380/2"
    values = shown(load({**SECRETS, "TURNKEEPER_DATABASE_URL": url, "TURNKEEPER_REDIS_URL": redis}))
    assert values["redis_url"] == "rediss://(set)@cache:6380/2"
    assert "canary" not in str(values)
    assert values["secret_key"] == "(set)"
    assert values["database_url"].startswith("postgres")
    assert "chat" in values["database_url"]
    assert values["providers"][0]["api_key"] == "(set)"
    assert "127.0.0.1:9" in values["providers"][0]["base_url"]


def test_what_is_shown_says_everything_else() -> None:
    values = shown(load({}))
    assert set(values) == set(Settings.__struct_fields__)
    assert values["secret_key"] == ""


def test_keys_stay_out_of_reprs() -> None:
    written('[[providers]]\nid = "a"\nkind = "openai"\napi_key = "canary"')
    assert "canary" not in repr(load(SECRETS).providers)


# ---------------------------------------------------------------- mistakes

FILES = {
    "nonsense = 1": "nonsense",
    "port = 'x'": "port",
    "port = 80.5": "port",
    "port = 0": "port",
    "port = 70000": "port",
    "access = 'everybody'": "access",
    "allowed_hosts = 5": "allowed_hosts",
    "default_model = 5": "default_model",
    "database_url = 'mysql://x'": "database_url",
    "trusted_proxies = ['*']": "trusted_proxies: “*”",
    "trusted_proxies = ['0.0.0.0/0']": "trusted_proxies: “0.0.0.0/0” is so much",
    "trusted_proxies = ['10.0.0.1', '::/0']": "trusted_proxies: “::/0” is so much",
    "trusted_proxies = '0.0.0.0/1 128.0.0.0/1'": "trusted_proxies: “0.0.0.0/1” is so much",
    "trusted_proxies = ['proxy.local']": "trusted_proxies: “proxy.local” is no address",
    "trusted_proxies = ['10.0.0.1/8']": "trusted_proxies: “10.0.0.1/8” is no address",
    "database_url = 'postgresql://u:canary@127.0.0.1:abc/x'": "database_url: its host or port",
    "database_url = 'postgresql://u:canary@[::1/x'": "database_url: its host or port",
    "database_url = 'postgresql://u:can/ary@127.0.0.1/x'": "database_url: its host or port",
    "database_url = 'postgresql://u@127.0.0.1:70000/x'": "database_url: its host or port",
    "redis_url = 'redis://:canary@127.0.0.1:abc/0'": "redis_url: its host or port",
    "[[providers]]\nid = 'x'\nkind = 'openai'\nbase_url = 'http://u:canary@[::1/x'": "providers[0].base_url: its host",
    "redis_url = 'http://127.0.0.1:6379'": "redis_url",
    "redis_url = 'redis://127.0.0.1:6379/chat'": "redis_url",
    "secret_key = 'short'": "secret_key",
    "models = 5": "models",
    "[[models]]\nid = 'x'": "models[0]",
    "[[models]]\nid = 'x'\nprovider = 'none'": "models[0].provider",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nprice = 1": "models[0]",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nstate = 'gone'": "models[0].state",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\ncontext_tokens = '8k'": "models[0].context_tokens",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\ncontext_tokens = -1": "models[0].context_tokens",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nmax_reply_tokens = -5": "models[0].max_reply_tokens",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nprice_in = -1.0": "models[0].price_in",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nprice_out = nan": "models[0].price_out",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nconcurrent_turns = -1": "models[0].concurrent_turns",
    "[[models]]\nid = 'a b'\nprovider = 'builtin'": "models[0].id",
    "[[models]]\nid = ''\nprovider = 'builtin'": "models[0].id",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\n[[models]]\nid = 'x'\nprovider = 'builtin'": "models[1].id",
    "[[models]]\nid='x'\nprovider='builtin'\naliases=['y']\n[[models]]\nid='y'\nprovider='builtin'": "aliases",
    "[[models]]\nid = 'x'\nprovider = 'builtin'\nreplacement = 'none'": "models[0].replacement",
    "default_model = 'y'\n[[models]]\nid = 'x'\nprovider = 'builtin'": "default_model",
    "[[providers]]\nid = 'x'": "providers[0]",
    "[[providers]]\nid = 'x'\nkind = 'magic'": "providers[0].kind",
    "[[providers]]\nid = 'x'\nkind = 'openai'\nkey = 'x'": "providers[0]",
    "[[providers]]\nid = 'x'\nkind = 'openai'\nbase_url = 'not a url'": "providers[0].base_url",
    "[[providers]]\nid = 'x'\nkind = 'openai'\nbase_url = 'ftp://x/v1'": "providers[0].base_url",
    "[[providers]]\nid = 'x'\nkind = 'openai'\napi_key_file = 'none'": "providers[0].api_key_file",
    "[[providers]]\nid = 'builtin'\nkind = 'openai'": "providers",
    "[[providers]]\nid = 'x'\nkind = 'openai'\nreasoning = 2048": "providers[0].reasoning",
    "[[providers]]\nid = 'x'\nkind = 'anthropic'\nreasoning = 1023": "providers[0].reasoning",
    "[[providers]]\nid = 'x'\nkind = 'anthropic'\nreasoning = -1": "providers[0].reasoning",
    "[[providers]]\nid = 'x'\nkind = 'anthropic'\nreasoning = 'much'": "providers[0].reasoning",
    "[groups.user]\nturns = 'often'": "groups.user.turns",
    "[groups.user]\nturns = '0/min'": "groups.user.turns",
    "[groups.user]\nidle = 'long'": "groups.user.idle",
    "[groups.user]\nconcurrent_turns = -1": "groups.user.concurrent_turns",
    "[groups.user]\nmoney_per_month = -1": "groups.user.money_per_month",
    "[groups.user]\non_missing_model = 'cry'": "on_missing_model",
    "[groups.user]\nturns_per_day = 5": "turns_per_day",
    "[groups.user]\ntokens_per_month = -1": "groups.user.tokens_per_month",
    "[groups.user]\nmoney_per_day = -0.5": "groups.user.money_per_day",
    "[groups.user]\ntime_zone = 'UTC'": "time_zone",
    "[groups.'*']\nturns = '1/min'": "groups.*.turns",
    "[groups.'*']\ntime_zone = 'UTC'": "time_zone",
    "[groups.'*']\ndefault_model = 'x'": "groups.*.default_model",
    "time_zone = 'Europe/Berlim'": "time_zone",
    "time_zone = ''": "time_zone",
    "time_zone = 2": "time_zone",
    "[groups.user]\ndefault_model = 'none'\n[[models]]\nid = 'x'\nprovider = 'builtin'": "groups.user.default_model",
    "[groups]\nuser = 5": "groups",
    "config_file = 'x'": "config_file",
    "openai_api_key = 'x'": "openai_api_key",
    "= 1": "turnkeeper.toml",
}  # fmt: skip


@pytest.mark.parametrize("typed", ["a.example,b.example", "a.example b.example", " a.example, b.example, "])
def test_a_list_is_parted_by_commas_or_blanks_wherever_it_is_typed(typed: str) -> None:
    written(
        f"allowed_hosts = '{typed}'\n[[models]]\nid = 'x'\nprovider = 'builtin'\n"
        "groups = 'user, admin'\naliases = ['y z']\n[groups.user]\nturns = '9/min'"
    )
    for environ in ({}, {"TURNKEEPER_ALLOWED_HOSTS": typed, "TURNKEEPER_TRUSTED_PROXIES": "10.0.0.1 10.0.0.2"}):
        settings = load(environ)
        assert settings.allowed_hosts == ["a.example", "b.example"]
        assert settings.trusted_proxies == (["10.0.0.1", "10.0.0.2"] if environ else [])
    (model,) = settings.models
    assert (model.groups, model.aliases) == (["user", "admin"], ["y", "z"])
    written("[groups.'one,two']\nturns = '9/min'")
    assert "groups.one,two" in refused()


@pytest.mark.parametrize(("text", "key"), FILES.items(), ids=[text.replace("\n", " ") for text in FILES])
def test_a_mistake_in_the_file_is_named_by_its_key(text: str, key: str) -> None:
    written(text)
    told = refused()
    assert key in told and "canary" not in told


def test_proxies_and_hosts_are_taken_in_every_form_they_have() -> None:
    proxies = ["10.0.0.1", "10.0.0.0/8", "::1", "fc00::/7", "2001:db8::/32"]
    for url in ("postgresql://u:p%2F@[::1]:5432/x", "postgresql://h1:5432,h2/x", "postgresql:///x?host=/run"):
        written(f"trusted_proxies = {proxies}\ndatabase_url = '{url}'")
        assert load({}).trusted_proxies == proxies


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TURNKEEPER_PORT", "x"),
        ("TURNKEEPER_PORT", "0"),
        ("TURNKEEPER_PORT", "70000"),
        ("TURNKEEPER_PORT", ""),
        ("TURNKEEPER_ACCESS", "all"),
        ("TURNKEEPER_DISCOVER", "perhaps"),
        ("TURNKEEPER_PROT", "8000"),
        ("TURNKEEPER_MODELS", "x"),
        ("TURNKEEPER_OPENAI_API_KEY", "x"),
        ("TURNKEEPER_", "x"),
        ("TURNKEEPER_TRUSTED_PROXIES", "*"),
        ("TURNKEEPER_DATABASE_URL", "oracle://x"),
        ("TURNKEEPER_DATABASE_URL", "sqlite://x.db"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:x.db"),
        ("TURNKEEPER_DATABASE_URL", "sqlite://"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:///"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:///var/"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:///:memory:"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:///x.db?mode=ro"),
        ("TURNKEEPER_DATABASE_URL", "sqlite:///x#1.db"),
        ("TURNKEEPER_TIME_ZONE", "Middle/Earth"),
        ("TURNKEEPER_TIME_ZONE", ""),
    ],
)
def test_a_mistake_in_the_environment_is_named_by_its_variable(name: str, value: str) -> None:
    told = refused({name: value})
    assert name in told or name.removeprefix("TURNKEEPER_").lower() in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 8001", "$: there is no key “prot”; did you mean “port”?"),
        (
            "[groups.user]\nturns = '9/min'\n[groups.brief]\nturn = '9/min'",
            "$.groups.brief: there is no key “turn”; did you mean “turns”?",
        ),
        ("[[providers]]\nid = 'a'\nkind = 'openai'\nbase_ur = 'x'", "$.providers[0]: there is no key “base_ur”; did"),
        (
            "[[models]]\nid = 'a'\nprovider = 'builtin'\nzzz = 1",
            "$.models[0]: there is no key “zzz”; there are aliases, ",
        ),
        ("time_zone = 'Mars'", "time_zone: there is no time zone"),
        ("[groups.user]\nturns = '9 or so'", "$.groups.user.turns: a rate is written like"),
        ("log_format = 'xml'", "$.log_format: possible are text, json"),
        ("[groups.user]\non_missing_model = 'x'", "$.groups.user.on_missing_model: possible are fallback, block"),
        ("[[models]]\nid = 'a'\nprovider = 'builtin'\nstate = 'x'", "$.models[0].state: possible are active, deprec"),
    ],
)
def test_a_mistake_names_its_file_its_group_and_the_keys_there_are(text: str, told: str) -> None:
    written(text)
    assert refused().startswith(f"turnkeeper.toml: {told}")


def test_a_file_of_sqlite_may_have_any_name() -> None:
    for written, path in (
        ("sqlite:///a b.db", "a b.db"),
        ("sqlite:////x/a%3F%23.db", "/x/a?#.db"),
        ("sqlite:///a:b", "a:b"),
    ):
        assert load({"TURNKEEPER_DATABASE_URL": written}).sqlite_path == Path(path)


def test_a_mistake_in_the_environment_is_not_blamed_on_the_file() -> None:
    written("port = 8000")
    for name, value in (("PORT", "x"), ("TIME_ZONE", "Mars"), ("REDIS_URL", "x"), ("TRUSTED_PROXIES", "*")):
        assert "turnkeeper.toml" not in refused({f"TURNKEEPER_{name}": value})


def test_a_file_that_is_no_text_is_told() -> None:
    Path("turnkeeper.toml").write_bytes(b"\xff\xfe\x00")
    assert "turnkeeper.toml" in refused()
    Path("turnkeeper.toml").unlink()
    Path("turnkeeper.toml").mkdir()
    assert "turnkeeper.toml" in refused()


def test_one_secret_given_twice_is_told() -> None:
    """Which of two databases would it be?"""
    written("sqlite:///b.db", "url")
    environ = {"TURNKEEPER_DATABASE_URL": "sqlite:///a.db", "TURNKEEPER_DATABASE_URL_FILE": "url"}
    assert "DATABASE_URL" in refused(environ)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[groups.'*']\nturns = '1/min'", "$.groups.*.turns: this is a limit of groups, and for the server as a whole"),
        ("[groups.'*']\ntime_zone = 'UTC'", "$.groups.*.time_zone: it stands at the top of the file: time_zone ="),
        (
            "[groups.user]\nmoney_per_day = '50 USD'",
            "$.groups.user.money_per_day: an amount of money is a plain number",
        ),
        ("[groups.user]\nturns = 30", "$.groups.user.turns: a rate is written like '10/min burst 5'"),
        ("[groups.user]\nconcurrent_turns = 'three'", "$.groups.user.concurrent_turns: a count is a whole number"),
        ("[groups.guest]\nidle = 30", "$.groups.guest.idle: a span is written like '30d'"),
    ],
)
def test_a_wrong_limit_is_answered_with_how_it_is_written(text: str, told: str) -> None:
    written(text)
    answer = refused()
    assert told in answer
    assert "time_zone" not in answer or "time_zone" in text
    assert "convert" not in answer and "`" not in answer
