"""Ports, models and keys, from what the control API answers."""

from __future__ import annotations

from typing import Any

import pytest

from federation.errors import NotFound, UsageError
from federation.use.target import KEY_HERE, MODEL_HERE, NO_KEY, Port, check_key, names, port_of, ports, target

LOCAL = Port("default", "http://127.0.0.1:8484", asks_key=False, is_local=True)


def row(address: str, **more: Any) -> dict[str, Any]:
    return {"service": "default", "address": address, "scheme": "http", "names": [], "asks_key": False, **more}


def url(address: str, host: str = "", **more: Any) -> str:
    (port,) = ports({"listeners": [row(address, **more)]}, host)
    return port.url


def test_a_port_for_all_addresses_is_named_as_the_client_names_the_machine() -> None:
    assert url("0.0.0.0:8484") == "http://127.0.0.1:8484"
    assert url("[::]:8484") == "http://[::1]:8484"
    assert url("0.0.0.0:8484", "gpu.lan") == url("[::]:8484", "gpu.lan") == "http://gpu.lan:8484"
    assert url("0.0.0.0:8484", "[fd00::1]") == url("0.0.0.0:8484", "fd00::1") == "http://[fd00::1]:8484"
    assert url("10.0.0.5:8484", "gpu.lan") == "http://10.0.0.5:8484"


def test_tls_is_https_under_a_name_of_the_certificate() -> None:
    tls = {"scheme": "https"}
    assert url("0.0.0.0:8484", names=["chat.example", "10.0.0.5"], **tls) == "https://chat.example:8484"
    assert url("0.0.0.0:8484", "10.0.0.5", names=["chat.example", "10.0.0.5"], **tls) == "https://10.0.0.5:8484"
    assert url("0.0.0.0:8484", "gpu.lan", names=["*.lan"], **tls) == "https://gpu.lan:8484"
    assert url("0.0.0.0:8484", "a.gpu.lan", names=["*.lan", "fd00::1"], **tls) == "https://[fd00::1]:8484"
    assert url("10.0.0.5:8484", names=[], **tls) == "https://10.0.0.5:8484"
    assert url("10.0.0.5:8484", names=["not a host", "http://x"], **tls) == "https://10.0.0.5:8484"


def test_sockets_and_tcp_ports_are_for_no_http_client() -> None:
    assert ports({"listeners": [row("unix:/run/x.sock"), row("127.0.0.1:1", scheme="tcp")]}) == []
    assert ports({"listeners": [row("127.0.0.1:1", scheme="quic")]}) == []  # of a newer version


def test_a_node_of_an_earlier_version() -> None:
    found = ports({"listeners": [{"service": "default", "address": "127.0.0.1:8484"}]})
    assert found == ports({"listens": {"default": "127.0.0.1:8484"}}) == [LOCAL]


@pytest.mark.parametrize("host", ["http://x", "a b", "x'", "$(id)", "x/y", "10.0.0"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match="neither"):
        ports({"listeners": [row("0.0.0.0:8484")]}, host)


def test_the_port_of_a_service() -> None:
    plain = Port("default", "http://10.0.0.5:1", asks_key=True, is_local=False)
    secure = Port("default", "https://10.0.0.5:2", asks_key=True, is_local=False)
    other = Port("embed", "http://127.0.0.1:3", asks_key=False, is_local=True)
    assert port_of([secure, other, LOCAL, plain]) is port_of([secure, LOCAL], host="localhost") is LOCAL
    assert port_of([plain, secure, other]) is secure
    assert port_of([LOCAL, other, plain, secure], host="gpu.lan") is secure
    assert port_of([LOCAL, other, plain], host="fd00::1") is plain
    assert port_of([plain, other], "embed") is other
    with pytest.raises(NotFound, match="embed"):
        port_of([plain], "embed")


def model(name: str, *places: tuple[str, bool]) -> dict[str, Any]:
    return {"name": name, "places": [{"service": service, "warm": warm} for service, warm in places]}


def test_models_for_chats_come_first_and_of_these_those_in_memory() -> None:
    rows = [
        model("a-cold", ("default", False)),
        model("b-warm", ("default", False), ("default", True)),
        model("all-minilm", ("default", True)),
        model("elsewhere", ("embed", True)),
        model("un\u202eseen", ("default", True)),
    ]
    assert names({"models": rows}) == ["b-warm", "a-cold", "all-minilm"]
    assert names({"models": rows}, "embed") == ["elsewhere"]
    assert names({}) == []


def test_the_target() -> None:
    to = target(LOCAL, ["b", "a:latest"], key="fedk_x")
    assert (to.url, to.model, to.models, to.some_key) == (LOCAL.url, "b", ("b", "a:latest"), "fedk_x")
    assert "fedk" not in repr(to)
    assert target(LOCAL, ["b", "a:latest"], model="a").models == ("a:latest", "b")
    assert target(LOCAL, []).model == MODEL_HERE
    assert target(LOCAL, []).some_key == NO_KEY
    assert target(LOCAL, [], model="mine").model == "mine"
    with pytest.raises(NotFound, match="no node has the model c"):
        target(LOCAL, ["b"], model="c")
    with pytest.raises(NotFound):
        target(LOCAL, [], model="a\nb")


@pytest.mark.parametrize("text", ["", " ", "two words", "a\nb", "it's", "ké", "$(id)", "x" * 513])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_key(text)
    assert check_key(" fedk_abc\n") == "fedk_abc"
    assert check_key(KEY_HERE) == KEY_HERE
