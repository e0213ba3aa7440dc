from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from federation.config import AUTO_CAPACITY, NAMES, VISIBLE_GPUS, Endpoint, HostPort, Replay, Settings, load
from federation.errors import ConfigError
from federation.forward.selection import Policy
from federation.mesh.records import NODE_ONLINE_WINDOW
from federation.mesh.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = Token.new("net").encode()


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_")) or name in VISIBLE_GPUS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def refused(**flags: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags)
    text = str(caught.value)
    assert "\n" not in text
    return text


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return file


# Which GPUs count


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("0, 2", ("0", "2")), ("GPU-8f3a5c1e", ("GPU-8f3a5c1e",)), ("MIG-GPU-8f/1/0", ("MIG-GPU-8f/1/0",)), ("None", ())],
)
def test_gpus_that_count(tmp_path: Path, text: str, gpus: tuple[str, ...]) -> None:
    assert load({"gpus": text}).gpus == gpus
    assert load({}, config_file=written(tmp_path, f'gpus = "{text}"')).gpus == gpus


def test_gpus_that_count_as_toml_has_numbers(tmp_path: Path) -> None:
    assert load({}, config_file=written(tmp_path, "gpus = 1")).gpus == ("1",)
    assert load({}, config_file=written(tmp_path, "gpus = [0, 2]")).gpus == ("0", "2")


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("1", ("1",)), ("0,1,-1,2", ("0", "1")), ("", ()), ("-1", ()), ("NoDevFiles", ()), ("GPU-8f3a", ("GPU-8f3a",))],
)
@pytest.mark.parametrize("variable", VISIBLE_GPUS)
def test_without_the_option_the_gpus_count_that_servers_see(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, gpus: tuple[str, ...]
) -> None:
    assert load({}).gpus is None
    monkeypatch.setenv(variable, text)
    assert load({}).gpus == gpus
    assert load({"gpus": "7"}).gpus == ("7",)


# Defaults and where values come from


def test_defaults(tmp_path: Path) -> None:
    settings = load({})
    assert settings.backends == ()
    assert settings.listens == (Endpoint("default", HostPort("127.0.0.1", 8484)),)
    assert str(settings.p2p_listen) == "0.0.0.0:4484"
    assert str(settings.control) == "127.0.0.1:8485"
    assert 1 <= len(settings.name) <= 64
    assert settings.vram_bytes is None
    assert settings.target is None
    assert settings.health_path is None
    assert settings.token is settings.token_file is None
    assert (settings.hold_s, settings.open_timeout_s, settings.drain_timeout_s) == (10.0, 3.0, 30.0)
    assert (settings.health_interval_s, settings.announce_interval_s) == (2.0, 5.0)
    assert settings.replay is Replay.AUTO
    assert (settings.replay_buffer_bytes, settings.http_buffer_bytes) == (65536, 64 << 20)
    assert (settings.capacity, settings.max_connections, settings.max_connections_per_peer) == (0, 16384, 4096)
    assert settings.state_dir == tmp_path / ".local/state/federation"
    assert settings.mdns
    assert (settings.log_level, settings.log_format) == ("info", "console")


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 'hold = "1s"\nopen-timeout = "1s"\ndrain_timeout = 1\n')
    monkeypatch.setenv("FEDERATION_HOLD", "2s")
    monkeypatch.setenv("FEDERATION_OPEN_TIMEOUT", "2s")
    settings = load({"hold_s": "3s", "open_timeout_s": None, "backends": []}, config_file=file)
    assert settings.hold_s == 3.0
    assert settings.open_timeout_s == 2.0
    assert settings.drain_timeout_s == 1.0
    assert settings.health_interval_s == 2.0


def test_the_file_in_the_users_config_directory_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "federation").mkdir()
    (tmp_path / "federation/config.toml").write_text('name = "from-file"')
    assert load({}).name == "from-file"


def test_every_setting_can_be_a_variable_or_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "backend": "127.0.0.1:1,embed=127.0.0.1:2",
        "listen": "127.0.0.1:0,embed=127.0.0.1:0",
        "p2p_listen": "127.0.0.1:0",
        "announce": "192.0.2.1:4484",
        "peer": "/ip4/192.0.2.1/tcp/1,box.lan:2",
        "control_host": "box.lan,box",
        "allow_origin": "https://chat.example,null",
        "browser_check": "false",
        "affinity": "off",
        "require_key": "true",
        "tls_cert": "/cert.pem",
        "tls_key": "/cert.key",
        "name": "box",
        "vram": "1GiB",
        "gpus": "0,1",
        "policy": "random",
        "target": "other",
        "hold": "1",
        "open_timeout": "500ms",
        "replay": "first-byte",
        "replay_buffer": "2KiB",
        "http_buffer": "1MiB",
        "drain_timeout": "1m",
        "health_interval": "1s",
        "health_path": "/health",
        "announce_interval": "1s",
        "capacity": "4",
        "max_connections": "5",
        "max_connections_per_peer": "6",
        "state_dir": "/s",
        "control": "127.0.0.1:0",
        "mdns": "false",
        "port_mapping": "true",
        "dht": "true",
        "bootstrap": "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW" + "A" * 44,
        "relay": "false",
        "path_penalty": "20ms",
        "detect": "false",
        "relay_reservations": "7",
        "relay_circuits": "8",
        "relay_rate": "9MB",
        "log_level": "DEBUG",
        "log_format": "json",
        "notify_url_file": "/n",
        "notify_after": "1m",
        "token_file": "/t",
    }
    assert set(values) | {"token", "invite", "notify_url"} == set(NAMES.values())

    with monkeypatch.context() as patch:
        for name, value in values.items():
            patch.setenv(f"FEDERATION_{name.upper()}", value)
        from_environment = load({})
    file = written(tmp_path, "".join(f'{name.replace("_", "-")} = "{value}"\n' for name, value in values.items()))
    assert load({}, config_file=file) == from_environment

    default = Settings()
    secrets = ("token", "invite", "notify_url")
    assert all(getattr(from_environment, f) != getattr(default, f) for f in NAMES if f not in secrets)
    assert from_environment.backends == (Endpoint.parse("127.0.0.1:1"), Endpoint.parse("embed=127.0.0.1:2"))
    assert from_environment.peers == ("/ip4/192.0.2.1/tcp/1", "/dns/box.lan/tcp/2")
    assert from_environment.vram_bytes == 1024**3
    assert from_environment.log_level == "debug"
    assert not from_environment.mdns
    assert not from_environment.relay


def test_the_address_for_notices_is_in_no_error_and_no_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load({"notify_url": "https://ntfy.sh/t0psecret"})
    assert "t0psecret" not in repr(settings)
    assert settings.notify_url is not None
    assert settings.notify_url.get_secret_value() == "https://ntfy.sh/t0psecret"
    for wrong in ("ntfy.sh/t0psecret", "ftp://h/t0psecret", "https://h:99999/t0psecret", "https://h/t0p secret", "https://"):
        said = refused(notify_url=wrong)
        assert said.startswith("A setting is wrong: --notify-url: write http://HOST/PATH")
        assert "t0p" not in said
    assert "are both given" in refused(notify_url="https://h/x", notify_url_file="/f")
    monkeypatch.setenv("FEDERATION_NOTIFY_URL", "https://h/x")
    assert load({"notify_url_file": "/f"}).notify_url is None  # an option beats a variable


def test_who_may_ask_from_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load({})
    assert (settings.browser_check, settings.allow_origins) == (True, ())
    file = written(tmp_path, 'allow-origin = ["HTTPS://Chat.Example/", "*"]\nno-browser-check = true')
    settings = load({}, config_file=file)
    assert (settings.browser_check, settings.allow_origins) == (False, ("https://chat.example", "*"))
    monkeypatch.setenv("FEDERATION_NO_BROWSER_CHECK", "1")
    assert not load({}).browser_check
    assert refused(allow_origins=["chat.example"]).startswith(
        "A setting is wrong: --allow-origin 'chat.example': write an origin"
    )
    monkeypatch.setenv("FEDERATION_BROWSER_CHECK", "perhaps")
    assert "FEDERATION_BROWSER_CHECK 'perhaps'" in refused()


def test_toml_may_use_its_own_types(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'backend = ["127.0.0.1:1", "b=127.0.0.1:2"]\nhold = 1.5\nvram = 1000\nmdns = false\ncapacity = 3'
    )
    settings = load({}, config_file=file)
    assert [backend.service for backend in settings.backends] == ["default", "b"]
    assert (settings.hold_s, settings.vram_bytes, settings.mdns, settings.capacity) == (1.5, 1000, False, 3)


@pytest.mark.parametrize("given", [{"capacity": "auto"}, {"capacity": " AUTO "}])
def test_the_capacity_may_be_left_to_the_backends(given: dict[str, Any], tmp_path: Path) -> None:
    assert load(given).capacity == AUTO_CAPACITY
    assert load({}, config_file=written(tmp_path, 'capacity = "auto"')).capacity == AUTO_CAPACITY


@pytest.mark.parametrize(("text", "mdns"), [("1", False), ("true", False), ("0", True), ("No", True)])
def test_no_mdns_is_a_variable_too(text: str, mdns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_NO_MDNS", text)
    assert load({}).mdns is mdns


def test_variables_of_other_names_and_empty_ones_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_HOLDS", "x")
    monkeypatch.setenv("FEDERATION_HOLD", "")
    monkeypatch.setenv("HOLD", "7")
    monkeypatch.setenv("NAME", "not-me")
    settings = load({})
    assert settings.hold_s == 10.0
    assert settings.name != "not-me"


def test_policies_are_those_of_the_selection() -> None:
    assert {load({"policy": policy.value}).policy for policy in Policy} == {policy.value for policy in Policy}


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load({}).hold_s = 1.0  # type: ignore[misc]


# What is refused, and under which name


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"hold_s": "10 parsecs"}, "--hold '10 parsecs': write seconds"),
        ({"hold_s": "2h"}, "--hold '2h': it should be less than or equal to 3600"),
        ({"open_timeout_s": "0"}, "--open-timeout '0': it should be greater"),
        ({"gpus": "0,two"}, "--gpus '0,two': write numbers or UUIDs"),
        ({"gpus": ","}, "--gpus"),
        ({"vram_bytes": "24G"}, "--vram '24G': write bytes"),
        ({"vram_bytes": "9999999TiB"}, "--vram"),
        ({"replay_buffer_bytes": "1"}, "--replay-buffer '1'"),
        ({"policy": "best"}, "--policy 'best': it should be 'least-loaded', 'least-requests' or 'random'"),
        ({"replay": "always"}, "--replay 'always': it should be 'auto', 'opened', 'first-byte' or 'never'"),
        ({"backends": ["127.0.0.1:1", "https://h:2"]}, "--backend 'https://h:2': write HOST:PORT, without a scheme"),
        ({"backends": ["http://127.0.0.1:0"]}, "--backend 'http://127.0.0.1:0': port 0"),
        ({"listens": ["ftp://127.0.0.1:1"]}, "--listen 'ftp://127.0.0.1:1': write HOST:PORT, without a scheme"),
        ({"http_buffer_bytes": "1kB"}, "--http-buffer '1kB'"),
        ({"backends": ["127.0.0.1:0"]}, "--backend '127.0.0.1:0': port 0"),
        ({"listens": ["8484"]}, "--listen '8484'"),
        ({"announce": ["0.0.0.0:1"]}, "--announce '0.0.0.0:1': others cannot dial"),
        ({"peers": ["/ip4/192.0.2.1"]}, "--peer '/ip4/192.0.2.1': write a TCP multiaddr"),
        ({"peers": ["nonsense"]}, "--peer 'nonsense': the port is missing"),
        ({"p2p_listen": "::1"}, "--p2p-listen '::1': an IPv6 address needs brackets"),
        ({"control": "8485"}, "--control '8485': the port is missing"),
        ({"control_hosts": ["gpu-box:8485"]}, "--control-host 'gpu-box:8485': write the name alone"),
        ({"control_hosts": ["a b"]}, "--control-host 'a b': the host is neither"),
        ({"capacity": "-1"}, "--capacity '-1': it should be greater"),
        ({"capacity": "many"}, "--capacity 'many': it should be a valid integer"),
        ({"max_connections": "0"}, "--max-connections '0'"),
        ({"max_connections_per_peer": "0"}, "--max-connections-per-peer '0'"),
        ({"name": "x" * 65}, "1 to 64 printable"),
        ({"name": " "}, "--name ' ': a name has"),
        ({"name": "a\x1b[31m"}, "a name has"),
        ({"target": ""}, "--target ''"),
        ({"health_path": "health"}, "--health-path 'health': a path begins with /"),
        ({"health_path": "/a b"}, "--health-path '/a b'"),
        ({"state_dir": ""}, "--state-dir '': the path is empty"),
        ({"log_level": "loud"}, "--log-level 'loud'"),
        ({"log_format": "xml"}, "--log-format 'xml'"),
        ({"announce_interval_s": "1m"}, "--announce-interval '1m'"),
    ],
)
def test_nonsense_is_refused_by_flag_and_value(flags: dict[str, Any], expected: str) -> None:
    assert expected in refused(**flags)


def test_the_name_is_the_one_the_person_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 'open-timeout = "soon"')
    with pytest.raises(ConfigError, match=r"open-timeout in .*config\.toml 'soon': write seconds"):
        load({}, config_file=file)
    monkeypatch.setenv("FEDERATION_OPEN_TIMEOUT", "later")
    with pytest.raises(ConfigError, match="FEDERATION_OPEN_TIMEOUT 'later': write seconds"):
        load({}, config_file=file)
    with pytest.raises(ConfigError, match="--open-timeout 'never': write seconds"):
        load({"open_timeout_s": "never"}, config_file=file)


def test_a_bad_item_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_BACKEND", "127.0.0.1:1, 127.0.0.1:x")
    assert "FEDERATION_BACKEND '127.0.0.1:x': a port is" in refused()


def test_bad_words_for_no_mdns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_NO_MDNS", "perhaps")
    assert "perhaps" in refused()


@pytest.mark.parametrize("text", ["hold = [1]", "hold = true", "backend = 1", "backend = [1]", "name = 1", "[hold]\nx = 1"])
def test_toml_of_the_wrong_type_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"in .*config\.toml"):
        load({}, config_file=written(tmp_path, text))


def test_unknown_keys_are_named_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'opentimeout'; did you mean open-timeout"):
        load({}, config_file=written(tmp_path, "opentimeout = 3"))
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'$"):
        load({}, config_file=written(tmp_path, "zzz = 3"))
    with pytest.raises(ConfigError, match="unknown key 'hold_s'"):
        load({}, config_file=written(tmp_path, "hold_s = 3"))
    with pytest.raises(ConfigError, match="both open-timeout and open_timeout"):
        load({}, config_file=written(tmp_path, "open-timeout = 3\nopen_timeout = 3"))


def test_two_backends_of_one_service_are_refused() -> None:
    assert "two backends for the service 'a'" in refused(backends=["a=127.0.0.1:1", "a=127.0.0.1:2"])


def test_a_port_twice_is_refused_but_not_port_0() -> None:
    assert "given twice" in refused(listens=["127.0.0.1:1", "b=127.0.0.1:1"])
    assert len(load({"listens": ["127.0.0.1:0", "b=127.0.0.1:0"]}).listens) == 2


@pytest.mark.parametrize("backend", ["127.0.0.1:8484", "localhost:8484", "0.0.0.0:8484"])
def test_a_node_that_would_forward_to_itself_is_refused(backend: str) -> None:
    assert "this node's own --listen" in refused(backends=[backend], listens=["0.0.0.0:8484"])


def test_the_slowest_announcements_keep_a_node_online() -> None:
    slowest = load({"announce_interval_s": "10s"}).announce_interval_s
    assert 4 * slowest <= NODE_ONLINE_WINDOW.total_seconds()


# The token


def test_the_token_shows_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDERATION_TOKEN", TOKEN)
    settings = load({})
    assert settings.token is not None
    assert settings.token.get_secret_value() == TOKEN
    assert TOKEN not in f"{settings!r} {settings}"


def test_a_wrong_setting_beside_a_token_does_not_show_it(tmp_path: Path) -> None:
    assert TOKEN not in refused(token=TOKEN, hold_s="x")
    file = written(tmp_path, f'token = ["{TOKEN}"]')
    with pytest.raises(ConfigError, match="token in") as caught:
        load({}, config_file=file)
    assert TOKEN not in str(caught.value)


def test_token_and_token_file_of_one_layer_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = refused(token=TOKEN, token_file="f")
    assert "--token and --token-file are both given" in text
    assert TOKEN not in text
    with pytest.raises(ConfigError, match=r"token in .* and token_file in .* are both given"):
        load({}, config_file=written(tmp_path, 'token = "x"\ntoken_file = "f"'))
    monkeypatch.setenv("FEDERATION_TOKEN", TOKEN)
    monkeypatch.setenv("FEDERATION_TOKEN_FILE", "f")
    assert "FEDERATION_TOKEN and FEDERATION_TOKEN_FILE are both given" in refused()


def test_of_two_layers_the_higher_one_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, 'token = "from-file"')
    monkeypatch.setenv("FEDERATION_TOKEN_FILE", "/environment")
    settings = load({}, config_file=file)
    assert (settings.token, str(settings.token_file)) == (None, "/environment")
    monkeypatch.delenv("FEDERATION_TOKEN_FILE")
    monkeypatch.setenv("FEDERATION_TOKEN", TOKEN)
    settings = load({"token_file": "/flag"}, config_file=file)
    assert (settings.token, str(settings.token_file)) == (None, "/flag")
    settings = load({}, config_file=file)
    assert settings.token is not None
    assert settings.token.get_secret_value() == TOKEN


def test_an_empty_token_is_given_all_the_same() -> None:
    settings = load({"token": ""})
    assert settings.token is not None  # an unset shell variable must not start a new network


def test_the_control_api_may_be_reached_from_elsewhere() -> None:
    settings = load({"control": "0.0.0.0:8485", "control_hosts": ["gpu-box", "192.0.2.1"]})
    assert (settings.control, settings.control_hosts) == (HostPort("0.0.0.0", 8485), ("gpu-box", "192.0.2.1"))


def test_what_auto_means_for_a_request() -> None:
    assert Replay.AUTO.of(names_model=True) is Replay.FIRST_BYTE
    assert Replay.AUTO.of(names_model=False) is Replay.OPENED
    for said in (Replay.OPENED, Replay.FIRST_BYTE, Replay.NEVER):
        assert {said.of(names_model=True), said.of(names_model=False)} == {said}
