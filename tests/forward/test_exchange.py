"""One request and its answer, at every point where something may happen. Peers are the test's own, clients real sockets.

Each `network` block ends with everybody leaving, and checks that no counter, tunnel, timer or descriptor is left.
"""

from __future__ import annotations

import json
import random
import select
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.forward.attempts import REFUSED_PENALTY_S, SILENT_PENALTY_S, State
from federation.forward.counters import Answer as Told
from federation.forward.counters import Flow
from federation.forward.dispatcher import BROKE_OFF_PENALTY_S
from federation.forward.exchange import (
    BEHIND_S,
    MOST_LOSSES,
    PROBE_AGAIN_S,
    PROBE_S,
)
from federation.forward.exit import HELD
from federation.forward.http.kept_bodies import FREE
from federation.forward.http.usage import Tokens
from federation.forward.request_body import QUIET_S, SMALL_QUIET_S
from federation.mesh.models import Model, catalog, pack
from federation.reactor.sockets import OUT_BUFFER
from tests.support.entries import OWN, Net, Tunnel, network, settled
from tests.support.http_clients import HttpTalk, ask, body_of, get, ok, ok_chunked, post, post_chunked
from tests.support.sockets import is_reset, quiet, reset, small_buffers

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

MODES = ["opened", "first-byte", "never"]
every_mode = pytest.mark.parametrize("replay", MODES)
BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
REQUEST = post(BODY)
CHAT, MESSAGES, OLLAMA, PLAIN = "/v1/chat/completions", "/v1/messages", "/api/chat", "/x"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
SSE, LINES = "Content-Type: text/event-stream", "Content-Type: application/x-ndjson"


async def send(net: Net, talk: HttpTalk, data: bytes) -> None:
    received = net.received()
    await talk.stream.send_all(data)
    await settled(lambda: net.received() == received + len(data))


def serve(tunnel: Tunnel, answer: bytes) -> None:
    tunnel.answers()
    tunnel.sends(answer)
    tunnel.ends()


def by_anthropic(request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\nanthropic-version: 2023-06-01\r\n", 1)


# What reaches a backend


@every_mode
async def test_request_and_answer(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        assert net.tunnel.data.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in net.tunnel.data
        assert body_of(net.tunnel.data) == BODY
        net.tunnel.answers()
        (client,) = net.frontend.active
        assert client.state is (State.OPENED if replay == "first-byte" else State.STREAMING)
        net.tunnel.sends(ok(b"answer"))
        assert (await talk.answer()).body == b"answer"
        assert client.state is State.IDLE
        assert net.tunnel.eof
        assert net.tunnel.taken_bytes == net.tunnel.said_bytes
        assert net.finished("ok") == 1


@every_mode
async def test_own_backend(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, http=True, own_backend=True, replay=replay) as net:
        net.own_backend_is_up()
        talk = await ask(net, REQUEST)
        server = await net.server()
        heard = b""
        while not heard.endswith(BODY):
            heard += await server.receive_some()
        assert net.in_flight() == {OWN: 1}
        await server.send_all(ok_chunked(b"our own answer"))
        assert (await talk.answer()).body == b"our own answer"
        assert net.in_flight() == {}
        assert net.backends.in_flight == 0
        assert len(net.backends.kept) == 1
        assert net.tunnels == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((SSE,), "no"),
        ((LINES,), "no"),
        ((SSE, "X-Accel-Buffering: yes"), "yes"),
        (("Content-Type: application/json",), None),
    ],
)
async def test_a_stream_is_not_kept_back_by_a_proxy_before_the_entry(
    mock_clock: MockClock, fields: tuple[str, ...], said: str | None
) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        serve(net.tunnel, ok_chunked(b"data: x\n\n", *fields))
        assert (await talk.answer()).fields.get("x-accel-buffering") == said


async def test_a_backend_that_does_not_close_is_left(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(ok())
        assert (await talk.answer()).status == 200
        assert net.tunnel.eof
        assert net.tunnel.reset is None
        await net.passes(BEHIND_S + 0.1)
        assert net.tunnel.reset is not None
        assert net.finished("ok") == 1


async def test_bytes_behind_an_answer_are_nobodys(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST + get("/2"))
        first = net.tunnel
        first.answers()
        first.sends(ok(b"one") + ok(b"poison"))
        assert (await talk.answer()).body == b"one"
        await settled(lambda: len(net.tunnels) == 2)
        first.sends(ok(b"poison"))
        assert first.reset is not None
        serve(net.tunnel, ok(b"two"))
        assert (await talk.answer()).body == b"two"


@every_mode
async def test_a_large_body_waits_for_its_backend(mock_clock: MockClock, replay: str) -> None:
    body = b'{"model": "m", "x": "' + b"x" * 3_000_000 + b'"}'
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a")
        talk = HttpTalk(await net.connect())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.stream.send_all, post(body))
            await settled(lambda: net.tunnels)
            net.tunnel.answers()
            while body_of(net.tunnel.data) != body:
                await settled(lambda: net.tunnel.credit == 0 or body_of(net.tunnel.data) == body)
                net.tunnel.grants(300_000)
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).status == 200


async def test_a_model_that_nobody_has(mock_clock: MockClock) -> None:
    models = pack({"default": catalog("vllm", [Model("other")])})
    async with network(mock_clock, http=True) as net:
        net.add("a", models=models)
        talk = await ask(net, REQUEST)
        answer = await talk.answer()
        assert (answer.status, answer.fields["connection"]) == (404, "keep-alive")
        assert json.loads(answer.body)["error"]["code"] == "model_not_found"
        assert "model m" in answer.message
        await send(net, talk, post(BODY.replace(b'"m"', b'"other"')))
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200
        assert [row.route.model for row in net.frontend.counters.decisions] == ["other"]


@pytest.mark.parametrize("body", [b'{"model": "m", "Model": "n"}', b'{"model": ', b'{"model": "' + b"x" * 600 + b'"}'])
async def test_a_body_that_cannot_be_understood(mock_clock: MockClock, body: bytes) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        for request in (post(body), post_chunked(body)):
            talk = await ask(net, request)
            assert (await talk.answer("POST")).status == 400
            assert await talk.ends() == b""
        assert net.tunnels == []


# Upgrades

UPGRADE = get("/ws", "Connection: Upgrade", "Upgrade: websocket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@every_mode
@pytest.mark.parametrize("who_first", ["client", "backend"])
async def test_an_upgrade(mock_clock: MockClock, replay: str, who_first: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a")
        talk = await ask(net, UPGRADE + b"early frames")
        tunnel = net.tunnel
        assert body_of(tunnel.data) == b""
        tunnel.answers()
        tunnel.sends(SWITCH + b"hello")
        raw = b""
        while not raw.endswith(b"hello"):
            raw += await talk.stream.receive_some()
        assert raw.startswith(b"HTTP/1.1 101 ")
        await settled(lambda: body_of(tunnel.data) == b"early frames")
        await send(net, talk, get("/no-request") * 3)
        assert body_of(tunnel.data) == b"early frames" + get("/no-request") * 3
        tunnel.sends(ok(b"no answer"))
        assert await talk.stream.receive_some() == ok(b"no answer")
        if who_first == "client":
            await talk.stream.send_eof()
            await settled(lambda: tunnel.eof)
            tunnel.sends(b"bye")
            tunnel.ends()
            assert await talk.ends() == b"bye"
        else:
            tunnel.ends()
            assert await talk.ends() == b""
            await send(net, talk, b"bye")
            await talk.stream.send_eof()
            await settled(lambda: tunnel.eof)
            assert tunnel.data.endswith(b"bye")
        await settled(lambda: not net.frontend.active)
        assert tunnel.reset is None
        assert net.finished("ok") == 1
        (ending,) = net.frontend.counters.endings
        assert (ending.error, ending.flow) == (None, Flow(1, 1))
        assert ending.received == len(get("/no-request")) * 3 + (3 if who_first == "backend" else 0) + len(b"early frames")


async def test_more_frames_behind_an_upgrade_than_the_backend_takes(mock_clock: MockClock) -> None:
    frames = random.Random(1).randbytes(63_000)
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, UPGRADE + frames)
        tunnel = net.tunnel
        await talk.stream.send_eof()
        tunnel.credit = 1000
        tunnel.answers()
        tunnel.sends(SWITCH)
        while not tunnel.eof:
            tunnel.grants(10_000)
            await settled()
        assert body_of(tunnel.data) == frames


async def test_a_refused_upgrade_is_an_answer(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, UPGRADE)
        serve(net.tunnel, b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        assert (await talk.answer()).status == 426
        await send(net, talk, get())
        assert len(net.tunnels) == 2


async def test_an_upgrade_that_nobody_asked_for(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get())
        serve(net.tunnel, SWITCH)
        assert (await talk.answer()).status == 502


# Answers that come early, or do not come


async def test_an_answer_before_the_end_of_the_body(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post(bytes(1000), "/x")[:-500])
        net.tunnel.answers()
        net.tunnel.sends(ok(b"too long"))
        answer = await talk.answer()
        assert (answer.body, answer.fields["connection"]) == (b"too long", "close")
        assert net.tunnel.reset is not None
        assert not net.tunnel.eof, "that would say that the body was whole"
        await send(net, talk, bytes(500))
        assert await talk.ends() == b""


async def test_an_answer_that_begins_before_the_end_of_the_body(mock_clock: MockClock) -> None:
    """Its head has said `close`, and so it is."""
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post(bytes(1000), "/x")[:-500])
        net.tunnel.answers()
        net.tunnel.sends(ok(b"echo")[:-2])
        await send(net, talk, bytes(500))
        net.tunnel.sends(b"ho")
        answer = await talk.answer()
        assert (answer.body, answer.fields["connection"]) == (b"echo", "close")
        assert await talk.ends() == b""
        assert net.tunnel.reset is None


async def test_a_body_that_turns_bad_after_its_answer_has_begun(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post_chunked(b"x" * 30, "/x")[:-5] + b"1\r\n")
        net.tunnel.answers()
        net.tunnel.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        await talk.stream.receive_some()
        await talk.stream.send_all(b"zz not a chunk")
        assert await is_reset(talk.stream)
        await settled(lambda: not net.frontend.active)
        assert net.tunnel.reset is not None


ANSWERS = {
    "length": ok(b"0123456789"),
    "chunked": ok_chunked(b"0123456789", size=4),
    "end": b"HTTP/1.1 200 OK\r\n\r\n0123456789",
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok(b"0123456789"),
}


@pytest.mark.parametrize("how", ["ends", "breaks"])
@pytest.mark.parametrize("kind", ANSWERS)
@every_mode
async def test_a_backend_that_goes_at_every_byte_of_its_answer(
    mock_clock: MockClock, replay: str, kind: str, how: str
) -> None:
    whole = ANSWERS[kind]
    head = whole.index(b"\r\n\r\n", 30 * (kind == "interim")) + 4
    first = whole.index(b"\r\n\r\n") + 4
    for size in range(len(whole)):
        async with network(mock_clock, http=True, replay=replay) as net:
            net.add("a", "b")
            talk = await ask(net, REQUEST)
            tunnel = net.tunnel
            tunnel.answers()
            for n in range(size):
                tunnel.sends(whole[n : n + 1])
            getattr(tunnel, how)()
            await settled()
            if size < first:  # no byte of it went to the client
                if replay == "first-byte":
                    assert len(net.tunnels) == 2
                    assert net.tunnel.data == tunnel.data
                    serve(net.tunnel, ok(b"the other"))
                    assert (await talk.answer()).body == b"the other"
                    assert net.finished("ok") == 1
                else:
                    assert len(net.tunnels) == 1
                    answer = await talk.answer()
                    assert (answer.status, answer.fields["connection"]) == (502, "close")
                    assert net.finished("error") == 1
            else:
                assert len(net.tunnels) == 1, "answered bytes, and another backend"
                if size < head:
                    assert (await talk.answer()).status == 502
                elif kind == "end" and how == "ends":
                    assert (await talk.answer()).body == whole[head:size]
                    assert net.finished("ok") == 1
                else:
                    assert await is_reset(talk.stream)
                    assert net.finished("error") == 1
            assert all(tunnel.closed for tunnel in net.tunnels)


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/2 200\r\n\r\n"]
)
@every_mode
async def test_an_answer_that_is_no_http(mock_clock: MockClock, replay: str, answer: bytes) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(answer)
        assert net.tunnels[0].reset is not None
        if replay == "first-byte":
            serve(net.tunnels[1], ok())
            assert (await talk.answer()).status == 200
        else:
            assert (await talk.answer()).status == 502


# Mid-stream

STREAMS = [
    (CHAT, "", SSE, b'data: {"x": 1}\n\n', b'data: {"error": ', b"\n\n"),
    (
        MESSAGES,
        "anthropic-version: 1",
        SSE,
        b'event: x\ndata: {"x": 1}\n\n',
        b'event: error\ndata: {"type": "error"',
        b"\n\n",
    ),
    (OLLAMA, "", LINES, b'{"done": false}\n', b'{"error": ', b"\n"),
]


@pytest.mark.parametrize(("target", "field", "kind", "event", "error", "end"), STREAMS)
@pytest.mark.parametrize("how", ["ends", "breaks"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_stream_that_dies_says_so_in_its_dialect(
    mock_clock: MockClock, target: str, field: str, kind: str, event: bytes, error: bytes, end: bytes, how: str, version: str
) -> None:
    for cut in (0, 5):
        async with network(mock_clock, http=True) as net:
            net.add("a", "b")
            lines = [field] if field else []
            talk = await ask(net, post(BODY, target, *lines, version=version))
            net.tunnel.answers()
            net.tunnel.sends(ok_chunked(event * 3, kind, size=len(event))[: -5 - cut])
            getattr(net.tunnel, how)()
            if version == "1.1":
                answer = await talk.answer()
                body = answer.body
                assert answer.fields["transfer-encoding"] == "chunked"
            else:
                body = (await talk.ends()).partition(b"\r\n\r\n")[2]
            assert body.startswith(event * 2)
            if not cut:
                assert body.startswith(event * 3 + error)
            assert error in body
            assert body.endswith(end)
            assert await talk.ends() == b""
            assert net.finished("error") == 1
            assert ("a", BROKE_OFF_PENALTY_S) in net.roster.penalties


async def test_a_stream_that_had_said_its_last_word_just_ends(mock_clock: MockClock) -> None:
    body = b'data: {"x": 1}\n\ndata: [DONE]\n\n'
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(ok_chunked(body, SSE)[:-5])
        net.tunnel.breaks()
        assert (await talk.answer()).body == body


# Attempts


@pytest.mark.parametrize("how", ["refuses", "breaks"])
@every_mode
async def test_a_peer_that_does_not_take_it(mock_clock: MockClock, replay: str, how: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        getattr(net.tunnel, how)()
        if replay == "never":
            assert len(net.tunnels) == 1
            assert (await talk.answer()).status == 503
        else:
            first, second = net.tunnels
            assert second.data == first.data
            serve(second, ok())
            assert (await talk.answer()).status == 200
            assert net.frontend.counters.totals.retried == 1
        assert net.roster.penalties == [("a", REFUSED_PENALTY_S)]


@pytest.mark.parametrize("step", [1, 7, 100])
@pytest.mark.parametrize("replay", ["opened", "first-byte"])
async def test_a_retry_at_every_point_of_the_request(mock_clock: MockClock, replay: str, step: int) -> None:
    """The first peer goes after so many bytes of the request; the body is exact at the second one."""
    for said in (REQUEST, post_chunked(BODY, "/x", size=9), post(BODY, "/x")):
        for at in range(1, len(said), 23):
            async with network(mock_clock, http=True, replay=replay) as net:
                net.add("a", "b")
                talk = await ask(net, said[:at])
                if net.tunnels and replay == "first-byte":
                    net.tunnel.answers()
                for tunnel in list(net.tunnels):
                    tunnel.breaks()
                for n in range(at, len(said), step):
                    await send(net, talk, said[n : min(n + step, len(said))])
                *earlier, last = net.tunnels
                assert body_of(last.data) == body_of(said)
                for tunnel in earlier:
                    assert last.data.startswith(tunnel.data)
                serve(last, ok())
                assert (await talk.answer("POST")).status == 200


async def test_no_retry_once_more_was_sent_than_may_be_kept(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, replay="first-byte", http_buffer_bytes=65536) as net:
        net.add("a", "b")
        talk = await ask(net, post(bytes(90_000), "/x")[:-30_000])
        net.tunnel.answers()
        net.tunnel.grants(100_000)
        await send(net, talk, bytes(20_000))
        net.tunnel.breaks()
        assert (await talk.answer()).status == 502
        assert len(net.tunnels) == 1


@every_mode
async def test_a_busier_peer_costs_no_attempt(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        net.selector.told("a", 5)
        net.tunnel.is_busier(5)
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["a", "b"]
        assert net.tunnel.data == net.tunnels[0].data
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200
        assert (net.roster.penalties, net.frontend.counters.totals.retried) == ([], 0)
        (busier,) = net.frontend.counters.busier
        assert busier.flow == Flow(1, 1)


@pytest.mark.parametrize("is_open", [False, True])
@every_mode
async def test_a_suspect_peer(mock_clock: MockClock, replay: str, is_open: bool) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        if is_open:
            net.tunnel.answers()
        net.frontend.peer_suspect("a")
        moves = {"opened": not is_open, "first-byte": True, "never": False}[replay]
        assert len(net.tunnels) == 1 + moves
        if moves:
            assert net.roster.penalties == [("a", SILENT_PENALTY_S)]
            assert net.tunnels[0].reset is not None
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (REQUEST, {"type": "server_error", "code": "service_unavailable"}),
        (by_anthropic(post(BODY, MESSAGES)), {"type": "overloaded_error"}),
        (post(BODY, OLLAMA), None),
        (get(), {"code": 503}),
    ],
)
async def test_nobody_is_there(mock_clock: MockClock, request_: bytes, error: dict[str, Any] | None) -> None:
    async with network(mock_clock, http=True, hold_s=10) as net:
        talk = await ask(net, request_ + get("/behind"))
        await net.passes(9.9)
        assert len(net.frontend.dispatcher.waiting) == 1
        await net.passes(0.2)
        answer = await talk.answer()
        assert (answer.status, answer.fields["connection"]) == (503, "close")
        assert int(answer.fields["retry-after"]) > 0
        said = json.loads(answer.body)["error"]
        assert said == answer.message if error is None else said.items() >= error.items()
        assert await talk.ends() == b""
        assert net.finished("turned_away") == net.frontend.counters.totals.failed == 1
        assert net.frontend.rejected_clients == net.frontend.active


async def test_a_held_request_goes_when_somebody_comes(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, hold_s=10) as net:
        talk = await ask(net, REQUEST[:-10])
        await send(net, talk, REQUEST[-10:])
        await net.passes(5)
        net.add("a")
        await settled(lambda: net.tunnels)
        assert body_of(net.tunnel.data) == BODY
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200


async def test_requests_that_wait_are_told_at_the_drain(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, hold_s=10) as net:
        talk = await ask(net, REQUEST)
        net.frontend.stop_listening()
        answer = await talk.answer()
        assert answer.status == 503
        assert "shutting down" in answer.message


async def test_explain_tells_each_request_of_a_connection(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST + get("/2"))
        net.tunnel.refuses("no model yet")
        serve(net.tunnel, ok())
        await talk.answer()
        await settled(lambda: len(net.tunnels) == 3)
        serve(net.tunnel, ok())
        await talk.answer()
        counters = net.frontend.counters
        assert [(row.flow, row.attempt, row.route.model) for row in counters.decisions] == [
            (Flow(1, 1), 1, "m"), (Flow(1, 1), 2, "m"), (Flow(1, 2), 1, ""),
        ]  # fmt: skip
        assert [(row.flow, row.peer_id, row.why) for row in counters.failures] == [(Flow(1, 1), "a", "no model yet")]
        assert [(row.flow, row.attempts) for row in counters.endings] == [(Flow(1, 1), 2), (Flow(1, 2), 1)]
        assert (counters.totals.started, counters.totals.retried, counters.totals.failed) == (2, 1, 0)
        assert (counters.totals.received, counters.totals.delivered) == (len(BODY), 4)


# A client that goes

POINTS = ["head", "body", "waiting", "opening", "opened", "answer's head", "answer's body", "upgraded"]


async def at(net: Net, point: str) -> HttpTalk:
    """A client whose request has got as far as that."""
    if point != "waiting":
        net.add("a")
    said = {"head": REQUEST[:30], "body": REQUEST[:-5], "upgraded": UPGRADE}.get(point, REQUEST)
    talk = await ask(net, said)
    if point in ("opened", "answer's head", "answer's body", "upgraded"):
        net.tunnel.answers()
    if point == "answer's head":
        net.tunnel.sends(b"HTTP/1.1 200")
    if point == "answer's body":
        net.tunnel.sends(ok(b"answer")[:-3])
    if point == "upgraded":
        net.tunnel.sends(SWITCH)
    await settled()
    return talk


@every_mode
@pytest.mark.parametrize("point", POINTS)
async def test_a_client_that_goes(mock_clock: MockClock, replay: str, point: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        talk = await at(net, point)
        reset(talk.stream)
        await settled(lambda: not net.frontend.active)
        assert net.in_flight() == {}
        assert not net.frontend.dispatcher.waiting
        assert all(tunnel.reset is not None for tunnel in net.tunnels)
        assert net.roster.penalties == []
        await net.passes(60)
        assert len(net.tunnels) == (point not in ("head", "body", "waiting"))
        assert net.frontend.counters.totals.started == (point != "head")


@every_mode
@pytest.mark.parametrize("point", [*POINTS, "idle"])
async def test_this_node_ends_a_client(mock_clock: MockClock, replay: str, point: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        talk = HttpTalk(await net.connect()) if point == "idle" else await at(net, point)
        (client,) = net.frontend.active
        client.end("why not")
        assert not net.frontend.active
        assert all(tunnel.reset is not None for tunnel in net.tunnels)
        assert await is_reset(talk.stream)


@pytest.mark.parametrize("seed", range(10))
async def test_a_thousand_random_cancels_leave_nothing(mock_clock: MockClock, seed: int) -> None:
    """`network` looks for what was left. Ten times a thousand."""
    dice = random.Random(seed)
    async with network(mock_clock, http=True, replay=dice.choice(MODES), hold_s=1) as net:
        net.add("a", "b", "c")
        talks: list[HttpTalk] = []
        for _ in range(25):
            for _ in range(40):
                said = dice.choice([REQUEST, get(), post_chunked(BODY), UPGRADE, REQUEST * 3])
                sock: Any = await net_connect(net)
                sock.socket._sock.send(said[: dice.choice([len(said), dice.randrange(1, len(said))])])
                talks.append(HttpTalk(sock))
            await settled()
            for tunnel in net.tunnels:
                if not tunnel.closed:
                    act = dice.randrange(8)
                    if act < 6:
                        tunnel.answers()
                    answer = dice.choice([ok(), ok_chunked(b"stream", SSE), SWITCH, b"garbage\r\n\r\n"])
                    if act < 4:
                        tunnel.sends(answer[: dice.choice([len(answer), dice.randrange(len(answer))])])
                    elif act == 4:
                        tunnel.breaks()
                    elif act == 6:
                        tunnel.refuses()
                    elif act == 7:
                        tunnel.is_busier(3)
            net.forgive()
            if dice.random() < 0.2:
                await net.passes(1)
            dice.shuffle(talks)
            for talk in talks[: dice.randrange(len(talks) + 1)]:
                reset(talk.stream)
                talks.remove(talk)
            net.tunnels[:] = [tunnel for tunnel in net.tunnels if not tunnel.closed]
        for talk in talks:
            reset(talk.stream)
        await settled(lambda: not net.frontend.active)
        await net.passes(BEHIND_S + 1)


async def net_connect(net: Net) -> trio.SocketStream:
    """Without a wait for the entry to see it."""
    client = await trio.open_tcp_stream("127.0.0.1", net.port)
    net.clients.append(client)
    return client


# Back-pressure


@pytest.mark.parametrize("kind", ["length", "chunked", "upgraded"])
async def test_a_client_that_reads_nothing_holds_its_backend_back(kind: str) -> None:
    async with network(http=True) as net:
        net.add("a")
        talk = await ask(net, UPGRADE if kind == "upgraded" else REQUEST)
        (client,) = net.frontend.active
        small_buffers(client.socket.sock, talk.stream.socket._sock)  # type: ignore[attr-defined]
        tunnel = net.tunnel
        tunnel.answers()
        heads = {"length": b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n", "upgraded": SWITCH}
        tunnel.sends(heads.get(kind, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"))
        chunk = b"2710\r\n" + bytes(10_000) + b"\r\n" if kind == "chunked" else bytes(10_000)
        idle = 0  # the kernel takes some more, late
        while idle < 20:
            idle += 1
            while tunnel.said_bytes - tunnel.taken_bytes < 60_000:  # what a window of the mux allows
                tunnel.sends(chunk)
                await settled()
                idle = 0
                assert tunnel.said_bytes < 8_000_000, "the kernel holds all of it"
            await quiet(seconds=0.01)
        assert client.socket._out_size <= OUT_BUFFER
        unread, before = tunnel.said_bytes, tunnel.taken_bytes
        await settled()
        assert tunnel.taken_bytes == before
        read = 0
        while tunnel.taken_bytes < unread:
            read += len(await talk.stream.receive_some())
            await settled()
        assert tunnel.taken_bytes == tunnel.said_bytes


async def test_an_own_backend_is_not_read_for_a_client_that_reads_nothing() -> None:
    async with network(http=True, own_backend=True) as net:
        net.own_backend_is_up()
        talk = await ask(net, REQUEST)
        server: Any = await net.server()
        (client,) = net.frontend.active
        small_buffers(client.socket.sock, talk.stream.socket._sock)  # type: ignore[attr-defined]
        await server.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        body = bytes(1 << 16)
        sent, idle = 0, 0
        while idle < 5:
            try:
                sent += server.socket._sock.send(body)
                idle = 0
            except BlockingIOError:
                idle += 1
            await settled()
            assert sent < 40_000_000, "nobody stopped it"
        assert client.socket._out_size <= OUT_BUFFER
        taken = server.socket._sock  # again, once the client reads
        while not select.select([], [taken], [], 0)[1]:
            assert await talk.stream.receive_some()
            await settled()


async def test_many_clients_that_stop_reading_a_stream() -> None:
    async with network(http=True) as net:
        net.add("a")
        talks = [await ask(net, REQUEST) for _ in range(50)]
        for tunnel in net.tunnels:
            tunnel.answers()
            tunnel.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        for client in net.frontend.active:
            small_buffers(client.socket.sock)
        tracemalloc.start()
        chunk = b"2710\r\n" + bytes(10_000) + b"\r\n"
        for _ in range(100):
            for tunnel in net.tunnels:
                if tunnel.said_bytes - tunnel.taken_bytes < 50_000:
                    tunnel.sends(chunk)
            await settled()
        current, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert current < len(talks) * 200_000
        assert all(client.socket._out_size <= OUT_BUFFER for client in net.frontend.active)


# What an answer says of its tokens


def heard(net: Net) -> Any:
    return net.frontend.counters.endings[-1].answer


USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4}}


async def test_tokens_and_the_first_content_of_a_stream(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(ok_chunked(b"", SSE).removesuffix(b"0\r\n\r\n"))
        await net.passes(3.0)
        net.tunnel.sends(b"8\r\n: ping\n\n\r\n")
        await net.passes(2.0)
        for data in (b'{"choices": [], "usage": null}', json.dumps({"usage": USAGE}).encode(), b"[DONE]"):
            net.tunnel.sends(b"%x\r\ndata: %b\n\n\r\n" % (len(data) + 8, data))
        net.tunnel.sends(b"0\r\n\r\n")
        assert (await talk.answer()).body.endswith(b"[DONE]\n\n")
        assert heard(net) == Told(200, 0.0, 5.0, is_stream=True, tokens=Tokens(9, 12, 4))
        assert net.metric("federation_model_tokens_total", model="m", kind="cached") == 4
        assert net.metric("federation_model_first_token_seconds_count", model="m") == 1


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_tokens_of_a_whole_answer(mock_clock: MockClock, is_chunked: bool) -> None:
    body = json.dumps({"text": "x" * 9000, "usage": USAGE}).encode()
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        await net.passes(2.0)
        kind = "Content-Type: application/json"
        net.tunnel.sends(ok_chunked(body, kind) if is_chunked else ok(body, kind))
        assert (await talk.answer()).body == body
        assert heard(net) == Told(200, 0.0, 2.0, tokens=Tokens(9, 12, 4))


async def test_nothing_is_read_of_an_answer_without_a_model_nor_of_an_error(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        said = ok(b'{"usage": {"prompt_tokens": 1}}', "Content-Type: application/json")
        for request, answer in ((get(), said), (REQUEST, NOT_FOUND)):
            talk = await ask(net, request)
            net.tunnel.answers()
            net.tunnel.sends(answer)
            status = (await talk.answer()).status
            assert heard(net) == Told(status)
        assert net.metric("federation_model_requests_total", model="m") == 0, "no backend has answered to it"
        assert net.metric("federation_model_requests_total", model="other", result="ok") == 1


async def test_a_node_that_lacks_the_model_it_announces_is_to_look_again(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        for request, looks in ((get(), []), (REQUEST, ["default"])):
            talk = await ask(net, request)
            serve(net.tunnel, NOT_FOUND)
            assert (await talk.answer()).status == 404
            assert net.roster.links["a"].looks == looks


async def test_the_time_in_the_queue_is_told(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        talk = await ask(net, REQUEST)
        await net.passes(4.0)
        net.add("a")
        await settled(lambda: net.tunnels)
        await net.passes(1.0)
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200
        assert heard(net) == Told(200, 4.0)
        net.roster.nodes.clear()
        talk = await ask(net, REQUEST)
        await net.passes(11.0)
        assert (await talk.answer()).status == 503
        assert heard(net) == Told(503, 11.0)


# Things that live on one node


@pytest.mark.parametrize(
    "later", [get("/v1/responses/resp_1"), post(b'{"previous_response_id": "resp_1"}', "/v1/responses")]
)
async def test_other_entries_are_asked_where_a_thing_is(mock_clock: MockClock, later: bytes) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b", "c")
        asked: list[Callable[[str], None]] = []
        net.frontend.dispatcher.ask_others = lambda _digest, told: asked.append(told)
        talk, gone, unknown = [await ask(net, later) for _ in range(3)]
        await settled(lambda: len(asked) == 3)
        assert net.tunnels == []
        reset(gone.stream)
        await settled(lambda: len(net.frontend.active) == 2)
        asked[2]("")
        assert (await unknown.answer()).status == 404
        for told in asked[:2]:
            told("b")
        await settled(lambda: net.tunnels)
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["b"]
        serve(net.tunnel, ok(b"{}", "Content-Type: application/json"))
        assert (await talk.answer()).status == 200


CREATED = json.dumps({"type": "response.created", "response": {"id": "resp_1", "usage": None}}).encode()


@pytest.mark.parametrize(
    ("made", "later"),
    [
        (ok(b'{"id": "resp_1"}', "Content-Type: application/json"), get("/v1/responses/resp_1")),
        (ok_chunked(b"data: %b\n\n" % CREATED, SSE), get("/v1/v1/responses/resp_1/input_items?limit=1")),
        (
            ok(b'{"id": "resp_1"}', "Content-Type: application/json"),
            post(b'{"model": "m", "previous_response_id": "resp_1"}', "/v1/responses"),
        ),
    ],
)  # fmt: skip
async def test_a_request_about_a_thing_goes_where_it_was_made(mock_clock: MockClock, made: bytes, later: bytes) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b", "c")
        talk = await ask(net, later)
        answer = await talk.answer()
        assert (answer.status, net.tunnels) == (404, [])
        assert "responses/resp_1 lives on the node that made it" in answer.message
        talk = await ask(net, post(BODY, "/v1/responses"))
        maker = net.tunnel.peer_id
        serve(net.tunnel, made)
        assert (await talk.answer()).status == 200
        for _ in range(4):
            talk = await ask(net, later)
            assert net.tunnel.peer_id == maker
            serve(net.tunnel, ok())
            assert (await talk.answer()).status == 200


async def test_a_thing_whose_node_is_away_is_not_looked_for_elsewhere(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, post(b"{}", "/v1/files"))
        serve(net.tunnel, ok(b'{"id": "file-1"}', "Content-Type: application/json"))
        assert (await talk.answer()).status == 200
        net.roster.barred.add(net.tunnel.peer_id)
        talk = await ask(net, post(b'{"input_file_id": "file-1"}', "/v1/batches"))
        await net.passes(11.0)


# Answers that say that another peer may do better

BUSY_ANSWER = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nbusy"
LACKING = b'{"error": {"message": "The model `m` does not exist."}}'


def not_found(body: bytes) -> bytes:
    return b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize("status", [429, 502, 503])
@pytest.mark.parametrize("replay", ["auto", *MODES])
async def test_a_busy_backend(mock_clock: MockClock, replay: str, status: int) -> None:
    answer = BUSY_ANSWER.replace(b"503", b"%d" % status)
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        serve(net.tunnel, answer)
        moves = replay in ("auto", "first-byte")
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["a", "b"][: 1 + moves]
        if moves:
            assert net.tunnels[0].reset is not None
            assert net.tunnel.data == net.tunnels[0].data
            assert net.roster.penalties == [("a", REFUSED_PENALTY_S)]
            assert net.metric("federation_retries_total", reason="answer") == 1
            serve(net.tunnel, answer)  # nobody else is there: it is the answer, as it came
        got = await talk.answer("POST")
        assert (got.status, got.body, got.fields["retry-after"]) == (status, b"busy", "7")
        assert got.fields["x-federation-node"] == net.tunnel.peer_id


@pytest.mark.parametrize("status", [400, 401, 404, 500, 504])
async def test_other_errors_are_the_answer(mock_clock: MockClock, status: int) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        serve(net.tunnel, BUSY_ANSWER.replace(b"503", b"%d" % status))
        assert (await talk.answer("POST")).status == status
        assert len(net.tunnels) == 1
        assert net.roster.lacking == []


async def test_a_request_that_names_no_model_stays_where_it_was_opened(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, get())
        serve(net.tunnel, BUSY_ANSWER)
        assert (await talk.answer()).status == 503
        assert len(net.tunnels) == 1


async def test_where_there_is_one_node_only_it_is_asked(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/v1/files/unknown"))
        serve(net.tunnel, NOT_FOUND)
        assert (await talk.answer()).body == b"{}"


# Connections that backends keep


@every_mode
async def test_an_exit_that_keeps_connections_hears_where_the_answer_ends(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, REQUEST)
        assert b"\r\nConnection: keep-alive\r\n" in net.tunnel.data
        assert net.tunnel.takes_kept is (replay == "first-byte")  # a backend may have begun when a kept connection breaks
        net.tunnel.answers()
        interim, answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", ok_chunked(b"answer")
        net.tunnel.sends(interim)
        net.tunnel.sends(answer)
        assert (await talk.answer()).body == b"answer"
        assert net.tunnel.kept == len(interim) + len(answer)
        assert net.in_flight() == {}
        await send(net, talk, REQUEST)
        serve(net.tunnel, ok(b"second"))
        assert (await talk.answer()).body == b"second"
        assert net.finished("ok") == 2


@pytest.mark.parametrize(
    ("request_", "replay", "is_taken"),
    [
        (REQUEST, "auto", True),
        (get(), "auto", True),
        (get(), "opened", True),
        (get(), "never", False),
        (post(b"").replace(b"POST", b"DELETE"), "auto", True),
        (post(b'{"amount": 10}', "/pay"), "auto", False),
        (post(b"", "/pay"), "auto", False),
        (post(b'{"amount": 10}', "/pay"), "first-byte", True),
    ],
)
async def test_a_request_that_must_not_be_done_twice_goes_on_a_connection_of_its_own(
    mock_clock: MockClock, request_: bytes, replay: str, is_taken: bool
) -> None:
    """A kept connection may break behind it, and nobody can tell whether its backend had begun (RFC 9110 9.2.2)."""
    async with network(mock_clock, http=True, replay=replay) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, request_)
        assert net.tunnel.takes_kept is is_taken
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200


async def test_an_exit_of_a_former_version_is_asked_to_close(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        assert b"\r\nConnection: close\r\n" in net.tunnel.data
        serve(net.tunnel, ok())
        assert (await talk.answer()).status == 200
        assert net.tunnel.kept is None


async def test_a_request_that_moves_is_asked_of_each_exit_as_it_understands(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("new", "former")
        net.roster.links["new"].keeps = True
        talk = await ask(net, REQUEST)
        asked = {net.tunnel.peer_id: net.tunnel.data}
        net.tunnel.refuses()
        asked[net.tunnel.peer_id] = net.tunnel.data
        assert b"\r\nConnection: keep-alive\r\n" in asked["new"]
        assert b"\r\nConnection: close\r\n" in asked["former"]
        assert body_of(asked["new"]) == body_of(asked["former"]) == BODY
        net.tunnel.answers()
        net.tunnel.sends(ok())
        assert (await talk.answer()).status == 200


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (REQUEST, ok(b"x").replace(b"\r\n", b"\r\nConnection: close\r\n", 1)),
        (REQUEST, ok(b"x").replace(b"HTTP/1.1", b"HTTP/1.0")),
        (post(BODY, version="1.0"), ok(b"x")),
    ],
    ids=["the backend closes", "an old backend", "an old client"],
)
async def test_a_connection_that_ends_with_its_answer_is_not_kept(
    mock_clock: MockClock, request_: bytes, answer: bytes
) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, request_)
        net.tunnel.answers()
        net.tunnel.sends(answer)
        assert (await talk.answer()).status == 200
        assert net.tunnel.kept is None
        assert net.tunnel.eof


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "POST"])
async def test_a_body_that_a_server_may_leave_unread_ends_its_connection(mock_clock: MockClock, method: str) -> None:
    """Some servers read no body of such a request. The next thing that they read on a connection would be that body: a
    request of the client's choice, and its answer would be another client's."""
    async with network(mock_clock, http=True) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, post(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n", "/x").replace(b"POST", method.encode()))
        assert b"\r\nConnection: close\r\n" in net.tunnel.data
        net.tunnel.answers()
        net.tunnel.sends(ok(b"x"))
        assert (await talk.answer(method)).status == 200
        assert net.tunnel.kept is None


async def test_an_error_or_a_redirect_may_have_come_before_its_backend_read_the_body(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        for request, status, is_kept in (
            (REQUEST, 404, False), (REQUEST, 307, False), (REQUEST, 201, True), (get(), 404, True), (get(), 307, True)
        ):  # fmt: skip
            talk = await ask(net, request)
            net.tunnel.answers()
            net.tunnel.sends(ok(b"x").replace(b"200", b"%d" % status, 1))
            assert (await talk.answer()).status == status
            assert (net.tunnel.kept is not None) == is_kept


async def test_bytes_behind_an_answer_are_not_told_as_a_part_of_it(mock_clock: MockClock) -> None:
    """So the exit, which has counted them too, keeps nothing."""
    async with network(mock_clock, http=True) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(ok(b"x") + b"HTTP/1.1 200 OK\r\n")
        assert (await talk.answer()).body == b"x"
        assert net.tunnel.kept == len(ok(b"x"))


async def test_a_long_request_asks_for_a_connection_of_its_own(mock_clock: MockClock) -> None:
    """The exit could not keep so much to send it again."""
    body = b'{"model": "m", "prompt": "' + bytes(HELD // 2).replace(b"\0", b"x") + b'"}'
    async with network(mock_clock, http=True, replay_buffer_bytes=4 * HELD) as net:
        net.add("a")
        net.roster.links["a"].keeps = True
        talk = await ask(net, post(body))
        assert net.tunnel.keeps
        assert not net.tunnel.takes_kept
        net.tunnel.answers()
        net.tunnel.grants(2 * HELD)
        await settled(lambda: body_of(net.tunnel.data) == body)
        net.tunnel.sends(ok())
        assert (await talk.answer()).status == 200
        assert net.tunnel.kept == len(ok())


@every_mode
async def test_an_own_backend_keeps_its_connection_too(mock_clock: MockClock, replay: str) -> None:
    async with network(mock_clock, http=True, own_backend=True, replay=replay) as net:
        net.own_backend_is_up()
        talk = await ask(net, REQUEST)
        server = await net.server()
        for n in range(4):
            if replay != "first-byte" and n:
                server = (
                    await net.server()
                )  # no backend may have it twice, so none is sent where it may find a closed connection
            heard = b""
            while not heard.endswith(BODY):
                heard += await server.receive_some()
            await server.send_all(ok(b"answer %d" % n))
            assert (await talk.answer()).body == b"answer %d" % n
            assert net.backends.in_flight == 0
            await send(net, talk, REQUEST)
        await net.server() if replay != "first-byte" else None
        reset(talk.stream)
        await settled(lambda: net.backends.in_flight == 0)


@every_mode
async def test_an_own_backend_that_has_closed_its_kept_connection_costs_the_client_nothing(
    mock_clock: MockClock, replay: str
) -> None:
    async with network(mock_clock, http=True, own_backend=True, replay=replay) as net:
        net.own_backend_is_up()
        talk = await ask(net, REQUEST)
        for n in range(3):
            server = await net.server()
            heard = b""
            while not heard.endswith(BODY):
                heard += await server.receive_some()
            await server.send_all(ok(b"answer %d" % n))
            assert (await talk.answer()).body == b"answer %d" % n
            await server.aclose()
            await send(net, talk, REQUEST)
        server = await net.server()
        await server.send_all(ok())
        assert (await talk.answer()).status == 200
        assert net.metric("federation_retries_total") == 0


async def test_for_long_a_fifth_of_the_requests_are_retried(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        net.frontend.dispatcher.retries.left = 0.0
        talk = await ask(net, b"")
        for n in range(10):
            await send(net, talk, REQUEST)
            serve(net.tunnel, BUSY_ANSWER)
            if n % 5 == 4:
                assert net.tunnel.opener is not None, "this one is retried"
                serve(net.tunnel, ok())
            assert (await talk.answer("POST")).status == (200 if n % 5 == 4 else 503)
            net.forgive()


async def test_a_reset_by_a_backend_is_paid_for_and_a_link_that_breaks_is_not(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        net.frontend.dispatcher.retries.left = 0.0
        for has_link, status in ((True, 503), (False, 200)):
            net.forgive()
            talk = await ask(net, REQUEST)
            net.tunnel.answers()
            if not has_link:
                del net.roster.links[net.tunnel.peer_id]
            net.tunnel.breaks()
            if status == 200:
                serve(net.tunnel, ok())
            assert (await talk.answer("POST")).status == status


async def test_a_request_that_breaks_its_backends_is_not_carried_to_all_of_them(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b", "c", "d", "e")
        talk = await ask(net, REQUEST)
        for _ in range(MOST_LOSSES):
            net.tunnel.answers()
            net.tunnel.breaks()
        assert (await talk.answer("POST")).status == 502
        assert len(net.tunnels) == MOST_LOSSES


@pytest.mark.parametrize("how", ["breaks", "ends", "garbage"])
async def test_the_only_backend_is_not_asked_twice_if_it_breaks(mock_clock: MockClock, how: str) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        if how == "garbage":
            net.tunnel.sends(b"\0\r\n\r\n")
        else:
            getattr(net.tunnel, how)()
        assert (await talk.answer("POST")).status == 502
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("step", [1, 1000])
async def test_a_model_that_a_backend_has_lost(mock_clock: MockClock, step: int) -> None:
    models = pack({"default": catalog("vllm", [Model("m")])})
    async with network(mock_clock, http=True) as net:
        net.add("a", "b", models=models)
        talk = await ask(net, REQUEST)
        first = net.tunnel
        first.answers()
        said = not_found(LACKING)
        for n in range(0, len(said), step):
            first.sends(said[n : n + step])
        assert [tunnel.peer_id for tunnel in net.tunnels] == ["a", "b"]
        ((route, peer_id),) = net.roster.lacking
        assert (route.model, peer_id) == ("m", "a")
        assert net.roster.penalties == []
        serve(net.tunnel, not_found(LACKING))
        got = await talk.answer("POST")
        assert (got.status, got.body) == (404, LACKING)
        assert net.tunnel.taken_bytes == net.tunnel.said_bytes


async def test_a_path_that_a_backend_does_not_know_is_its_answer(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        for body in (b"404 page not found", b"x" * 5000 + b"model", b""):
            serve(net.tunnel, not_found(body))
            assert (await talk.answer("POST")).body == body
            await send(net, talk, REQUEST)
        assert len(net.tunnels) == 4
        assert net.roster.lacking == []


async def test_a_404_that_is_cut_off_is_no_answer(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", "b")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        net.tunnel.sends(not_found(LACKING)[:-3])
        net.tunnel.ends()
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).status == 200


# A node that the request wants


async def test_a_pinned_request(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, hold_s=1.0) as net:
        net.add("a", "b")
        net.add("c", name="carol", models=pack({"default": catalog("vllm", [Model("other")])}))
        for target in ("b", "carol", "c"):
            talk = await ask(net, post(BODY, CHAT, f"x-federation-TARGET: {target}"))
            assert net.tunnel.peer_id == {"carol": "c"}.get(target, target)
            assert b"target" not in net.tunnel.data.lower()
            serve(net.tunnel, BUSY_ANSWER)
            assert (await talk.answer("POST")).status == 503
        for path in (CHAT, OLLAMA):
            talk = await ask(net, post(BODY, path, "X-Federation-Target: nobody"))
            got = await talk.answer("POST")
            assert (got.status, "nobody" in got.message) == (404, True)
        net.roster.barred.add("b")
        talk = await ask(net, post(BODY, MESSAGES, "X-Federation-Target: b"))
        await net.passes(1.1)
        got = await talk.answer("POST")
        assert (got.status, json.loads(got.body)["type"]) == (503, "error")
        talk = await ask(net, get("/v1/models", "X-Federation-Target: c"))
        assert net.tunnel.peer_id == "c", "what that node says of itself"


# Entries behind entries


async def test_a_request_that_comes_through_here_again_ends(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post(BODY, CHAT, "X-Federation-Via: other"))
        assert b"\r\nX-Federation-Via: other, own\r\n" in net.tunnel.data
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).status == 200
        again = await ask(net, net.tunnel.data)
        assert (await again.answer("POST")).status == 508
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("agent", ["federation", "federation-detect"])
async def test_an_entry_is_no_model_server_for_another_node(mock_clock: MockClock, agent: str) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", models=pack({"default": catalog("vllm", [Model("m")])}))
        for path in ("/v1/models", "/", "/api/tags"):
            talk = await ask(net, get(path, f"User-Agent: {agent}"))
            assert (await talk.answer()).status == 404
        assert net.tunnels == []


# Bodies that are kept


async def test_a_model_behind_more_than_is_kept(mock_clock: MockClock) -> None:
    body = b'{"x": "' + b"x" * 70_000 + b'", "model": "m"}'
    async with network(mock_clock, http=True, http_buffer_bytes=65536) as net:
        net.add("a")
        talk = HttpTalk(await net.connect())
        await talk.stream.send_all(post(body))
        got = await talk.answer("POST")
        assert got.status == 413
        assert "--http-buffer" in got.message


async def test_a_body_is_kept_once(mock_clock: MockClock) -> None:
    size = 8 << 20
    body = b'{"x": "' + b"x" * size + b'", "model": "m"}'
    async with network(mock_clock, http=True) as net:
        net.add("a")
        request = post(body)
        talk = HttpTalk(await net.connect())
        tracemalloc.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(talk.stream.send_all, request)
                await settled(lambda: net.tunnels)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < size + (2 << 20)
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).status == 200
        assert net.frontend.dispatcher.bodies.used == 0


async def test_bodies_wait_for_room_and_for_no_longer_than_hold(mock_clock: MockClock) -> None:
    each = 256 * 1024
    body = b'{"x": "' + b"x" * (each - 1000) + b'", "model": "m"}'
    async with network(mock_clock, http=True, http_buffer_bytes=each, hold_s=5.0) as net:
        net.add("a")
        bodies = net.frontend.dispatcher.bodies
        talks = [HttpTalk(await net.connect()) for _ in range(6)]
        sent = post(body)[: each - 2000]
        clients: list[Any] = sorted(net.frontend.active, key=lambda client: client.flow)
        async with trio.open_nursery() as nursery:
            for talk in talks:
                nursery.start_soon(talk.stream.send_all, sent)
            await settled(
                lambda: all(client.socket.received == len(sent) or client.exchange._body.waits for client in clients)
            )
            assert bodies.is_tight
            assert bodies.used <= bodies.most
            small = await ask(net, REQUEST)
            serve(net.tunnel, ok())
            assert (await small.answer("POST")).status == 200
            await net.passes(5.1)
            refused = set(net.frontend.rejected_clients)
            assert refused
            for talk, client in zip(talks, clients, strict=True):
                if client in refused:
                    got = await talk.answer("POST")
                    assert (got.status, "--http-buffer" in got.message, got.fields["retry-after"]) == (503, True, "5")
            nursery.cancel_scope.cancel()


async def test_a_client_that_stops_in_the_middle_of_a_large_body(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        body = b'{"x": "' + b"x" * (2 * FREE) + b'", "model": "m"}'
        small = await ask(net, REQUEST[:-5])
        large = await ask(net, post(body)[:-10])
        await net.passes(QUIET_S - 1)
        await send(net, large, b"x")
        await net.passes(QUIET_S - 1)
        assert net.frontend.busy == 2
        await net.passes(1.1)
        assert (await large.answer("POST")).status == 408
        assert net.frontend.dispatcher.bodies.used == 0
        await send(net, small, REQUEST[-5:])
        serve(net.tunnel, ok())
        assert (await small.answer("POST")).status == 200, "a small one takes nobody's room"


async def test_a_client_that_stops_in_the_middle_of_a_small_body_has_longer(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        stalls, slow = await ask(net, REQUEST[:-5]), await ask(net, REQUEST[:-5])
        await net.passes(SMALL_QUIET_S - 1)
        for byte in REQUEST[-5:-1]:
            await send(net, slow, bytes([byte]))
        await net.passes(1.1)
        got = await stalls.answer("POST")
        assert (got.status, got.message) == (408, "federation: the rest of the body is late")
        await net.passes(SMALL_QUIET_S - 2)
        await send(net, slow, REQUEST[-1:])
        net.tunnel.answers()
        await net.passes(10 * SMALL_QUIET_S)  # of a whole one nothing is late
        net.tunnel.sends(ok())
        assert (await slow.answer("POST")).status == 200


# Pages


async def test_a_preflight_is_answered_here(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, allow_origins=("https://chat.example",)) as net:
        net.add("a")
        asks = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, x-y")
        for origin, status in (("https://chat.example", 204), ("http://localhost:3000", 204), ("https://evil.example", 403)):
            head = get(CHAT, f"Origin: {origin}", *asks).replace(b"GET", b"OPTIONS")
            talk = await ask(net, head)
            got = await talk.answer("OPTIONS")
            assert got.status == status
            assert got.fields.get("access-control-allow-origin") == (origin if status == 204 else None)
            if status == 204:
                assert got.fields["access-control-allow-headers"] == "authorization, x-y"
                assert got.fields["connection"] == "keep-alive"
        assert net.tunnels == []
        extension = get(CHAT, "Origin: chrome-extension://abc", *asks).replace(b"GET", b"OPTIONS")
        await ask(net, extension)
        assert len(net.tunnels) == 1, "a backend decides, as before"


@pytest.mark.parametrize("said", ["", "Access-Control-Allow-Origin: *"])
async def test_an_allowed_page_can_read_the_answer(mock_clock: MockClock, said: str) -> None:
    async with network(mock_clock, http=True, allow_origins=("https://chat.example",)) as net:
        net.add("a")
        talk = await ask(net, post(BODY, CHAT, "Origin: https://chat.example"))
        serve(net.tunnel, ok(b"ok", *[said] * bool(said)))
        got = await talk.answer("POST")
        assert got.fields["access-control-allow-origin"] == ("*" if said else "https://chat.example")
        net.roster.nodes.clear()
        talk = await ask(net, post(b'{"model": ', CHAT, "Origin: https://chat.example"))
        assert (await talk.answer("POST")).fields["access-control-allow-origin"] == "https://chat.example"


async def test_every_page_may_read_where_all_may_ask(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, allow_origins=("*",)) as net:
        net.add("a")
        talk = await ask(net, post(BODY, CHAT, "Origin: https://any.example"))
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).fields["access-control-allow-origin"] == "https://any.example"


# A client that sends no more


async def test_a_client_that_sends_no_more_is_told_that_its_request_is_heard(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        await talk.stream.send_eof()
        (client,) = net.frontend.active
        await settled(lambda: client.has_ended)  # type: ignore[union-attr]
        await net.passes(PROBE_S - 0.1)
        net.tunnel.answers()
        await net.passes(0.2)
        await net.passes(PROBE_AGAIN_S)
        serve(net.tunnel, ok())
        got = await talk.answer("POST")
        assert (got.status, got.interim) == (200, (100, 100))


async def test_a_quick_answer_to_a_client_that_sends_no_more_comes_alone(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        (client,) = net.frontend.active
        await talk.stream.send_eof()
        await settled(lambda: client.has_ended)  # type: ignore[union-attr]
        await net.passes(PROBE_S - 0.1)
        serve(net.tunnel, ok())
        assert (await talk.answer("POST")).interim == ()
        assert await talk.ends() == b""


@pytest.mark.parametrize("began", [False, True])
async def test_a_client_that_went_away_behind_its_request(mock_clock: MockClock, began: bool) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        net.tunnel.answers()
        if began:
            net.tunnel.sends(ok_chunked(b"data: 1\n\n", SSE)[:-5])
            heard = b""
            while b"data: 1" not in heard:
                heard += await talk.stream.receive_some()
        (client,) = net.frontend.active
        await talk.stream.aclose()
        await settled(lambda: client.has_ended)  # type: ignore[union-attr]
        assert net.tunnel.reset is None
        await net.passes(PROBE_S + 0.01)
        await settled(lambda: net.tunnel.reset is not None)
        assert net.finished("error") == 1


@pytest.mark.parametrize(
    ("answer", "comments"),
    [
        (ok_chunked(b"data: 1\n\n", SSE, size=100)[:-5], 1), (ok_chunked(b"data: 1\n", SSE, size=100)[:-5], 0),
        (ok_chunked(b"data: 1\n\n", SSE, size=100)[:-7], 0), (ok_chunked(b"{}\n", LINES, size=100)[:-5], 0),
        (ok(b"data: 1\n\ndata: 2\n\n", SSE)[:-9], 0), (b"HTTP/1.1 200 OK\r\n" + SSE.encode() + b"\r\n\r\ndata: 1\n\n", 1),
    ],
)  # fmt: skip
async def test_where_a_stream_may_have_a_comment(mock_clock: MockClock, answer: bytes, comments: int) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, REQUEST)
        (client,) = net.frontend.active
        await talk.stream.send_eof()
        await settled(lambda: client.has_ended)  # type: ignore[union-attr]
        net.tunnel.answers()
        net.tunnel.sends(answer)
        await net.passes(PROBE_S + 0.01)
        net.tunnel.breaks()
        heard = await talk.ends() if comments or b"Length" not in answer else b""
        assert heard.count(b":\n\n") == comments
