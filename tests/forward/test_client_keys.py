"""Client keys at an entry: the judgement by itself, then on real connections."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from federation.forward.client_keys import ClientKeys, Grant, Refusal, fields_with_keys
from federation.forward.http.head import RequestHead, parse_request
from federation.mesh.client_keys import KeyTable, Statement, id_of, new_text
from federation.mesh.key_use import Use
from federation.mesh.models import Model, catalog, pack
from tests.support.entries import Net, network, settled
from tests.support.http_clients import HttpTalk, ask, get, ok, post

if TYPE_CHECKING:
    from trio.testing import MockClock

SEED = b"a" * 32
NOW_MS = 1_800_000_000_000
MODELS = {"models": pack({"default": catalog("ollama", [Model("m:latest"), Model("n")])})}
CHAT = b'{"model": "m"}'


class Clock:
    now = 0.0


class Keys:
    """A table of keys, and a judge."""

    def __init__(self, require: bool | None = None) -> None:
        self.table = KeyTable(b"n" * 40)
        self.clock = Clock()
        self.judge = ClientKeys(
            self.table, now=lambda: self.clock.now, now_ms=lambda: NOW_MS + int(self.clock.now * 1000), require=require
        )

    def add(self, name: str = "phone", **more: Any) -> str:
        text = new_text()
        self.table.add(SEED, text, Statement(id_of(text), "p", NOW_MS, name, **more), NOW_MS)
        return text

    def asked(self, *fields: str, on_loopback: bool = False) -> Grant | Refusal | None:
        return self.judge.judge(head(*fields), on_loopback=on_loopback)


def head(*fields: str, target: str = "/") -> RequestHead:
    return parse_request("\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *fields, "", ""]).encode())


def test_a_port_asks_off_loopback_as_soon_as_there_was_a_key() -> None:
    keys = Keys()
    assert not keys.judge.asks(on_loopback=False)
    assert keys.asked() is None
    keys.add()
    assert keys.judge.asks(on_loopback=False)
    assert not keys.judge.asks(on_loopback=True)
    assert keys.asked(on_loopback=True) is None
    refusal = keys.asked()
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.more) == (401, b'WWW-Authenticate: Bearer realm="federation"\r\n')
    keys.table.revoke(SEED, "phone", NOW_MS)
    assert keys.judge.asks(on_loopback=False), "the end of the last key opens no port"


@pytest.mark.parametrize("on_loopback", [True, False])
def test_a_person_decides(on_loopback: bool) -> None:
    assert Keys(require=True).judge.asks(on_loopback=on_loopback)
    keys = Keys(require=False)
    keys.add()
    assert not keys.judge.asks(on_loopback=on_loopback)


@pytest.mark.parametrize(
    "field",
    [
        "Authorization: Bearer {}", "authorization: bearer  {}", "X-Api-Key: {}", "api-key: {}", "Authorization: {}",
        "Authorization: Bearer\t{}", "Authorization: Token {}",
    ],
)  # fmt: skip
def test_the_fields_of_the_clients_that_people_have(field: str) -> None:
    keys = Keys()
    text = keys.add()
    granted = keys.asked(field.format(text))
    assert isinstance(granted, Grant)
    assert granted.name == "phone"
    name = field.partition(":")[0].lower().encode()
    assert fields_with_keys(head(field.format(text))) == {name}


@pytest.mark.parametrize("on_loopback", [True, False])
def test_a_key_that_is_none_gets_401_on_any_port(on_loopback: bool) -> None:
    keys = Keys()
    good, ended, over = keys.add(), keys.add("ended"), keys.add("over", expires_ms=NOW_MS + 1000)
    keys.table.revoke(SEED, "ended", NOW_MS)
    keys.clock.now = 1.0
    for text, why in (
        (new_text(), "no such client key"), (good[:-1], "no such client key"), (good.lower(), "no such client key"),
        ("fedk_", "no such client key"), (ended, "the client key 'ended' was revoked"),
        (over, "the client key 'over' has expired"),
    ):  # fmt: skip
        refusal = keys.asked(f"Authorization: Bearer {text}", on_loopback=on_loopback)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.why) == (401, why)
    two = keys.asked(f"Authorization: Bearer {good}", f"x-api-key: {new_text()}", on_loopback=on_loopback)
    assert isinstance(two, Refusal), "which of two keys counts nobody says"
    assert isinstance(keys.asked(f"Authorization: Bearer {good}", f"x-api-key: {good}"), Grant)
    assert keys.judge.refused == {"wrong": 5, "revoked": 1, "expired": 1}


@pytest.mark.parametrize("field", ["Bearer {} ,", 'Bearer "{}"', "Bearer {}, Bearer sk-1", "Bearer {}\xff"])
def test_a_key_with_more_around_it_is_wrong_and_stays_here(field: str) -> None:
    keys = Keys()
    said = parse_request(f"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: {field.format(keys.add())}\r\n\r\n".encode("latin-1"))
    refusal = keys.judge.judge(said, on_loopback=True)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401
    assert fields_with_keys(said) == {b"authorization"}


@pytest.mark.parametrize(
    "field", ["Authorization: Bearer sk-1", "Authorization: Basic Zm9v", "x-api-key: a", "Cookie: fedk_1"]
)
def test_what_is_no_key_of_ours_is_the_backends_affair(field: str) -> None:
    keys = Keys()
    text = keys.add()
    assert keys.asked(field, on_loopback=True) is None
    assert isinstance(keys.asked(field), Refusal)
    assert fields_with_keys(head(field, f"api-key: {text}")) == {b"api-key"}


def test_a_rate_is_a_bucket_of_its_own_key() -> None:
    keys = Keys()
    text, other = keys.add(requests=2, seconds=60), keys.add("other")
    said = f"Authorization: Bearer {text}"
    assert [isinstance(keys.asked(said), Grant) for _ in range(3)] == [True, True, False]
    refusal = keys.asked(said)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.retry_after_s, refusal.more) == (429, 30, b"")
    assert isinstance(keys.asked(f"Authorization: Bearer {other}"), Grant)
    keys.clock.now = 29.0
    assert isinstance(keys.asked(said), Refusal)
    keys.clock.now = 30.0
    assert isinstance(keys.asked(said), Grant)
    assert keys.judge.requests_by_name() == {"phone": 3, "other": 1}


def test_use_is_counted_while_a_key_is_valid() -> None:
    keys = Keys()
    text = keys.add()
    key = keys.table.find(text)
    assert key is not None
    assert keys.judge.uses() == []
    keys.clock.now = 2.0
    keys.asked(f"Authorization: Bearer {text}")
    assert keys.judge.uses() == [Use(key.id, 1, NOW_MS + 2000)]
    keys.table.revoke(SEED, "phone", NOW_MS)
    keys.judge.changed()
    assert keys.judge.uses() == []
    assert keys.judge.requests_by_name() == {}


@pytest.mark.parametrize(
    ("target", "model", "is_covered"),
    [
        ("/v1/completions", "m", True), ("/v1/completions", "M:latest", True), ("/v1/completions", "n", False),
        ("/v1/completions", "", False), ("/api/show", "m", True), ("/api/delete", "m", False), ("/api/copy", "m", False),
        ("/api/create", "m", False), ("/ollama/api/pull", "m", False), ("/api/api/push?x", "m", False),
        ("/api/blobs/sha256:1", "m", False), ("/api/chat", "m:8b", False),
        ("/api/%64elete", "m", False), ("/%61pi/pull?x=%20", "m", False), ("/models/delete/n", "m", False),
        ("/v1/models/apply", "m", False), ("/models/m", "m", True),
    ],
)  # fmt: skip
def test_a_key_for_some_models(target: str, model: str, is_covered: bool) -> None:
    grant = Grant(Statement(b"", "p", 0, "phone", models=("m",)))
    assert (grant.refusal(target, model) is None) == is_covered
    assert Grant(Statement(b"", "p", 0, "phone")).refusal(target, model) is None


# On connections


async def answer_of(net: Net, talk: HttpTalk, method: str = "POST") -> Any:
    net.tunnel.answers()
    net.tunnel.sends(ok(b"served"))
    net.tunnel.ends()
    return await talk.answer(method)


def with_field(request: bytes, field: str) -> bytes:
    return request.replace(b"\r\n", f"\r\n{field}\r\n".encode(), 1)


async def test_no_backend_sees_a_key_and_the_log_has_its_name(mock_clock: MockClock) -> None:
    keys = Keys(require=True)
    text = keys.add()
    async with network(mock_clock, http=True, keys=keys.judge) as net:
        net.frontend.keys = keys.judge
        keys.judge.require = True
        net.add("a", **MODELS)
        said = with_field(with_field(post(CHAT), f"Authorization: Bearer {text}"), "x-api-key: sk-mine")
        talk = await ask(net, said)
        assert text.encode() not in net.tunnel.data
        assert b"uthorization" not in net.tunnel.data
        assert b"x-api-key: sk-mine\r\n" in net.tunnel.data
        assert (await answer_of(net, talk)).body == b"served"
        await talk.stream.send_all(with_field(post(CHAT), f"x-api-key: {text}"))
        await settled(lambda: len(net.tunnels) == 2)
        assert text.encode() not in net.tunnel.data
        await answer_of(net, talk)
        assert [ending.key for ending in net.frontend.counters.endings] == ["phone", "phone"]


@pytest.mark.parametrize(
    ("path", "extra", "error"),
    [
        ("/v1/chat/completions", "X: 1", {"type": "invalid_request_error", "code": "invalid_api_key", "param": None}),
        ("/v1/messages", "X: 1", {"type": "authentication_error"}),
        ("/v1/models", "anthropic-version: 1", {"type": "authentication_error"}),
        ("/api/chat", "X: 1", None),
        ("/x", "X: 1", {"type": "unauthorized", "code": 401}),
    ],
)
async def test_a_refusal_speaks_the_dialect_of_the_path(
    mock_clock: MockClock, path: str, extra: str, error: dict[str, Any] | None
) -> None:
    keys = Keys()
    async with network(mock_clock, http=True, keys=keys.judge, require_key=True) as net:
        net.add("a", **MODELS)
        talk = HttpTalk(await net.connect())
        await talk.stream.send_all(with_field(post(CHAT, path), extra))
        answer = await talk.answer("POST")
        assert (answer.status, answer.fields["www-authenticate"]) == (401, 'Bearer realm="federation"')
        assert answer.fields["connection"] == "close"
        body = json.loads(answer.body)
        if error is None:
            assert body["error"].startswith("federation: this port asks for a client key")
        else:
            assert body["error"].pop("message").startswith("federation: this port asks for a client key")
            assert body["error"] == error
        assert net.tunnels == []


async def test_each_request_of_a_connection_is_judged(mock_clock: MockClock) -> None:
    keys = Keys()
    async with network(mock_clock, http=True, keys=keys.judge) as net:
        net.add("a", **MODELS)
        talk = await ask(net, post(CHAT))
        await answer_of(net, talk)
        keys.judge.require = True
        await talk.stream.send_all(post(CHAT))
        assert (await talk.answer("POST")).status == 401
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("line", ["Access-Control-Request-Method:", "X: 1"])
async def test_what_is_no_whole_preflight_shows_a_key(mock_clock: MockClock, line: str) -> None:
    async with network(mock_clock, http=True, keys=Keys().judge, require_key=True) as net:
        net.add("a", **MODELS)
        talk = HttpTalk(await net.connect())
        await talk.stream.send_all(
            f"OPTIONS /x HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n{line}\r\n\r\n".encode()
        )
        assert (await talk.answer("OPTIONS")).status == 401
        assert net.tunnels == []


async def test_a_model_that_the_key_does_not_cover(mock_clock: MockClock) -> None:
    keys = Keys()
    text = keys.add(models=("n",))
    field = f"Authorization: Bearer {text}"
    async with network(mock_clock, http=True, keys=keys.judge, require_key=True) as net:
        net.add("a", **MODELS)
        talk = HttpTalk(await net.connect())
        await talk.stream.send_all(with_field(post(CHAT, "/v1/chat/completions"), field))
        answer = await talk.answer("POST")
        assert answer.status == 403
        assert json.loads(answer.body)["error"] == {
            "message": "federation: the key 'phone' is for n, not for m", "type": "permission_error", "param": "model",
            "code": "model_not_allowed",
        }  # fmt: skip
        assert net.tunnels == []
        assert keys.judge.refused == {"model": 1}
        talk = HttpTalk(await net.connect())
        await talk.stream.send_all(with_field(get("/v1/models"), field))
        assert [row["id"] for row in json.loads((await talk.answer()).body)["data"]] == ["n"]
        await talk.stream.send_all(with_field(get("/v1/models/m"), field))
        assert (await talk.answer()).status == 404
        await talk.stream.send_all(with_field(post(b'{"model": "n"}'), field))
        await settled(lambda: len(net.tunnels) == 1)
        await answer_of(net, talk)


@pytest.mark.parametrize(
    "said", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"]
)
async def test_what_is_no_http_becomes_no_tunnel(mock_clock: MockClock, said: bytes) -> None:
    keys = Keys()
    async with network(mock_clock, http=True, keys=keys.judge, require_key=True) as net:
        net.add("a", **MODELS)
        client = await net.connect()
        await client.send_all(said)
        assert b"asks for a client key" in await fill_up(client)
        assert net.tunnels == []
    async with network(mock_clock, http=True, keys=keys.judge, require_key=True) as net:
        net.add("a", **MODELS)
        client = await net.connect()
        await client.send_all(b"*1")
        await client.send_eof()
        assert b"asks for a client key" in await fill_up(client)
        assert net.tunnels == []


async def fill_up(client: Any) -> bytes:
    seen = b""
    while chunk := await client.receive_some():
        seen += chunk
    return seen


async def test_a_port_that_asks_is_http_unless_it_was_said_to_be_tcp(mock_clock: MockClock) -> None:
    keys = Keys()
    async with network(mock_clock, keys=keys.judge, require_key=True) as net:
        net.is_http = True  # its ports are, since they ask
        net.add("a", **MODELS)
        client = await net.connect()
        await client.send_all(post(CHAT))
        assert (await fill_up(client)).startswith(b"HTTP/1.1 401 ")
        assert net.tunnels == []
        assert net.frontend._is_said_http("", on_loopback=True)
        assert net.frontend._is_said_http("http", on_loopback=True)
        assert not net.frontend._is_said_http("tcp", on_loopback=True)
