"""A connection of an HTTP service, which is cut into requests. Peers are the test's own, clients are real sockets.

Each `network` block ends with everybody leaving, and checks that no counter, tunnel, timer or descriptor is left.
"""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

from federation.forward.attempts import State
from federation.forward.counters import Flow
from federation.forward.l4 import L4Client
from federation.forward.l7 import HEAD_WITHIN_S, LINGER_S, PIPELINED
from federation.mesh.models import Model, catalog, pack
from federation.reactor.sockets import OUT_BUFFER
from federation.units import Endpoint
from tests.support.entries import Net, network, settled
from tests.support.http_clients import HttpTalk, ask, body_of, chunked, get, ok, ok_chunked, post, post_chunked
from tests.support.sockets import fill, is_reset, reset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

MODELS = {"models": pack({"default": catalog("vllm", [Model("m"), Model("n", warm=True)])})}


def serve(net: Net, answer: bytes) -> None:
    """The latest tunnel's backend answers, and closes behind that."""
    net.tunnel.answers()
    net.tunnel.sends(answer)
    net.tunnel.ends()


async def send(net: Net, talk: HttpTalk, data: bytes) -> None:
    received = net.received()
    await talk.stream.send_all(data)
    await settled(lambda: net.received() == received + len(data))


# One request after the other


async def test_each_request_is_a_pick_of_its_own(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/1"))
        assert net.tunnel.data.startswith(b"GET /1 HTTP/1.1\r\nHost: localhost\r\n")
        assert net.in_flight() == {"a": 1}
        serve(net, ok(b"one"))
        answer = await talk.answer()
        assert (answer.status, answer.body, answer.fields["connection"]) == (200, b"one", "keep-alive")
        assert answer.fields["x-federation-node"] == "a"
        assert net.in_flight() == {}
        del net.roster.nodes["a"]
        net.add("b")
        await send(net, talk, post(b'{"q": 2}', "/2"))
        assert (net.tunnel.peer_id, body_of(net.tunnel.data)) == ("b", b'{"q": 2}')
        serve(net, ok_chunked(b"two and more than one chunk"))
        assert (await talk.answer()).body == b"two and more than one chunk"
        assert [row.flow for row in net.frontend.counters.decisions] == [Flow(1, 1), Flow(1, 2)]
        assert [(row.flow, row.peer_id, row.error) for row in net.frontend.counters.endings] == [
            (Flow(1, 1), "a", None), (Flow(1, 2), "b", None),
        ]  # fmt: skip
        assert net.finished("ok") == 2
        assert net.roster.penalties == []


async def test_a_silent_connection_is_no_request(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        await net.connect()
        (client,) = net.frontend.active
        assert client.state is State.IDLE
        assert net.tunnels == []
        assert net.in_flight() == {}
        assert net.frontend.counters.totals.started == 0
        await net.passes(HEAD_WITHIN_S + 1)
        assert not client.socket.closed


async def test_a_body_in_chunks_goes_on_as_it_came(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", **MODELS)
        net.add("b", models=pack({"default": catalog("vllm", [Model("other")])}))
        said = post_chunked(b'{"messages": ["' + b"x" * 300 + b'"], "model": "other"}', size=7)
        talk = await ask(net, said)
        assert net.tunnel.peer_id == "b", "its model is found in the chunks' content"
        assert body_of(net.tunnel.data) == body_of(said)
        assert b"Transfer-Encoding: chunked\r\n" in net.tunnel.data
        serve(net, ok())
        assert (await talk.answer("POST")).status == 200


async def test_extensions_and_trailers_pass_both_ways(mock_clock: MockClock) -> None:
    body = b'5;x="y"\r\n{"a":\r\n2\r\n1}\r\n0;z\r\nX-Sum: 7\r\n\r\n'
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post_chunked(b"")[: -len(chunked(b""))] + body)
        assert body_of(net.tunnel.data) == body
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
        serve(net, answer)
        got = await talk.answer("POST")
        assert got.body == b'{"a":1}'
        await send(net, talk, get())
        serve(net, answer)
        raw = b""
        while not raw.endswith(body):
            raw += await talk.stream.receive_some()


async def test_many_bytes_in_pieces_of_any_size(mock_clock: MockClock) -> None:
    said = b"".join(
        [get("/1"), post(b'{"model": "m"}'), post_chunked(b'{"model": "m", "x": 1}'), get("/4"), post(b"x" * 100, "/5")]
    )
    for size in (1, 2, 7, 100):
        async with network(mock_clock, http=True) as net:
            net.add("a")
            client = await net.connect()
            talk = HttpTalk(client)
            for n in range(0, len(said), size):
                await client.send_all(said[n : n + size])
                await settled()
                for tunnel in net.tunnels:
                    tunnel.grants(1000)
            for n in range(5):
                await settled(lambda n=n: len(net.tunnels) == n + 1)
                serve(net, ok(b"%d" % n))
                assert (await talk.answer("POST")).body == b"%d" % n
            assert b"".join(body_of(tunnel.data) for tunnel in net.tunnels) == b"".join(
                [b'{"model": "m"}', chunked(b'{"model": "m", "x": 1}'), b"x" * 100]
            )


# Pipelined


async def test_pipelined_requests_are_answered_in_order(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, b"".join(get(f"/{n}") for n in range(20)))
        for n in range(20):
            await settled(lambda n=n: len(net.tunnels) == n + 1)
            assert net.tunnel.data.startswith(b"GET /%d " % n)
            serve(net, ok(b"%d" % n))
            assert (await talk.answer()).body == b"%d" % n
        assert [row.flow.request for row in net.frontend.counters.endings] == [*range(1, 21)]


async def test_requests_that_come_while_an_answer_streams_wait_for_its_end(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/1"))
        first = net.tunnel
        first.answers()
        first.sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await send(net, talk, get("/2") + get("/3")[:9])
        first.sends(b"3\r\ndef\r\n")
        await send(net, talk, get("/3")[9:])
        assert net.tunnels == [first]
        first.sends(b"0\r\n\r\n")
        assert (await talk.answer()).body == b"abcdef"
        for n in (2, 3):
            await settled(lambda n=n: len(net.tunnels) == n)
            assert net.tunnel.data.startswith(b"GET /%d " % n)
            serve(net, ok(b"%d" % n))
            assert (await talk.answer()).body == b"%d" % n


async def test_what_comes_with_the_end_of_an_answer_stays_behind_what_came_before(mock_clock: MockClock) -> None:
    """More requests than may wait: the rest lies in the socket when the first answer ends."""
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/0"))
        many = [get(f"/{n}", "X-Fill: " + "x" * 4000) for n in range(1, 60)]
        (client,) = net.frontend.active
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.stream.send_all, b"".join(many))
            await settled(lambda: client.socket.received >= PIPELINED)
            for n in range(60):
                await settled(lambda n=n: len(net.tunnels) == n + 1)
                assert net.tunnel.data.startswith(b"GET /%d " % n)
                serve(net, ok(b"%d" % n))
                assert (await talk.answer()).body == b"%d" % n


async def test_no_more_than_so_many_bytes_wait_behind_a_request() -> None:
    async with network(http=True) as net:
        net.add("a")
        talk = await ask(net, get())
        (client,) = net.frontend.active
        await fill(talk.stream, bytes(64 << 20), until=lambda: client.socket.received >= PIPELINED)
        assert client.socket.received <= PIPELINED + len(get())
        assert len(net.tunnel.data) < 300


async def test_a_client_that_sends_no_more_and_reads_slowly_hears_the_end() -> None:
    async with network(http=True) as net:
        net.add("a")
        talk = await ask(net, get())
        await talk.stream.send_eof()
        (client,) = net.frontend.active
        await settled(lambda: client.has_ended)
        serve(net, ok(bytes(16 << 20)))
        assert client.exchange is None
        assert client.socket.writable() <= 0
        await settled()
        assert len((await talk.answer()).body) == 16 << 20
        with trio.fail_after(10):
            assert await talk.ends() == b""


async def test_a_request_behind_the_rest_of_a_body_that_the_entry_answers_itself(mock_clock: MockClock) -> None:
    first = post(b'{"model": "unknown"}')
    async with network(mock_clock, http=True) as net:
        net.add("a", **MODELS)
        talk = await ask(net, first[:-5])
        await send(net, talk, first[-5:] + get("/v1/models"))
        assert (await talk.answer("POST")).status == 404
        assert (await talk.answer()).status == 200
        await send(net, talk, post(b'{"model": "unknown"}')[:-5])
        await talk.stream.send_all(first[-5:] + get("/v1/models"))
        await talk.stream.send_eof()
        assert (await talk.answer("POST")).status == 404
        assert (await talk.answer()).status == 200
        assert await talk.ends() == b""


@pytest.mark.parametrize("target", ["/v1/models", "/v1/models/unknown", "/api/tags"])
async def test_thousands_of_pipelined_requests_that_the_entry_answers_itself(mock_clock: MockClock, target: str) -> None:
    one = f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode().replace(b"Host: h", b"Host: localhost")
    n = 60_000 // len(one)
    async with network(mock_clock, http=True) as net:
        net.add("a", **MODELS)
        client = await net.connect()
        talk = HttpTalk(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, one * n)
            for _ in range(n):
                answer = await talk.answer()
                assert answer.status == (404 if "unknown" in target else 200)
        assert net.tunnels == []
        assert net.frontend.counters.totals.started == n
        assert not client.socket._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_own", [True, False], ids=["own answers", "a node's answers"])
async def test_who_reads_no_answer_asks_for_no_more_of_them(mock_clock: MockClock, is_own: bool) -> None:
    many = [Model(f"a-model-with-a-long-name-{n:0100}") for n in range(300)]
    async with network(mock_clock, http=True) as net:
        net.add("a", models=pack({"default": catalog("vllm", many)}) if is_own else b"")
        client = await net.connect()
        (entry,) = net.frontend.active
        sock: Any = client.socket
        said = get("/v1/models") * 20_000
        sent, before = 0, -1
        while before != (before := net.frontend.counters.totals.started + len(net.tunnels)) or not before:
            with suppress(BlockingIOError):
                sent += sock._sock.send(said[sent : sent + 65536])
            for _ in range(5):
                await settled()
                for tunnel in net.tunnels:
                    if not tunnel.closed:
                        tunnel.answers()
                        tunnel.sends(ok(bytes(50_000)))
                        tunnel.ends()
        assert entry.socket._out_size < 2 * OUT_BUFFER
        assert net.frontend.counters.totals.started < 1000


# How a connection goes on, and how it ends


@pytest.mark.parametrize(
    ("request_", "answer", "goes_on"),
    [
        (get(), ok(), True),
        (get("/x", "Connection: close"), ok(), False),
        (get(version="1.0"), ok(), False),
        (get("/x", "Connection: keep-alive", version="1.0"), ok(), True),
        (get(), ok(b"ok", "Connection: close"), True),  # that is between the exit and its backend
        (get(), b"HTTP/1.1 200 OK\r\n\r\nok", False),  # only the end tells where it ends
        (get("/x", "Connection: keep-alive", version="1.0"), ok_chunked(b"ok"), False),
        (get(), ok_chunked(b"ok"), True),
    ],
)
async def test_whether_the_connection_goes_on(mock_clock: MockClock, request_: bytes, answer: bytes, goes_on: bool) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, request_)
        serve(net, answer)
        got = await talk.answer()
        assert got.body == b"ok"
        assert got.fields["connection"] == ("keep-alive" if goes_on else "close")
        if goes_on:
            await send(net, talk, get("/next"))
            assert len(net.tunnels) == 2
        else:
            assert await talk.ends() == b""
        assert net.finished("ok") == 1


async def test_head_has_no_body_whatever_its_answer_says(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get().replace(b"GET", b"HEAD") + get("/2"))
        net.tunnel.answers()
        net.tunnel.sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        answer = await talk.answer("HEAD")
        assert (answer.body, answer.fields["content-length"]) == (b"", "1000")
        await settled(lambda: len(net.tunnels) == 2)
        net.tunnel.answers()
        net.tunnel.sends(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")
        assert (await talk.answer()).status == 304


async def test_http_1_0_gets_the_content_of_chunks_alone(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get(version="1.0"))
        serve(net, b"HTTP/1.1 102 Processing\r\n\r\n" + ok_chunked(b"a long answer of several chunks"))
        raw = await talk.ends()
        head, _, body = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"ransfer-" not in head
        assert body == b"a long answer of several chunks"
        assert net.tunnel.taken_bytes == net.tunnel.said_bytes


async def test_interim_answers_pass_but_100(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get())
        serve(net, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2 + ok())
        assert (await talk.answer()).interim == (103, 103)


async def test_the_entry_answers_an_expectation(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        said = post(b'{"model": "m"}', "/v1/chat/completions", "Expect: 100-continue")
        head = said[: -len(body_of(said))]
        talk = await ask(net, head)
        assert await talk.stream.receive_some() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert net.tunnels == [], "there is no model yet"
        await send(net, talk, body_of(said))
        assert b"xpect" not in net.tunnel.data
        serve(net, ok())
        assert (await talk.answer("POST")).interim == ()
        await send(net, talk, get("/x", "Expect: 100-continue"))
        serve(net, ok())
        assert (await talk.answer()).interim == (), "nothing is to come"


@pytest.mark.parametrize("slow", [False, True])
async def test_a_last_answer_reaches_a_slow_reader_whole(mock_clock: MockClock, slow: bool) -> None:
    body = bytes(range(256)) * 20_000
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/x", "Connection: close"))
        tunnel = net.tunnel
        tunnel.answers()
        tunnel.sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        sent = 0
        while sent < len(body):
            (client,) = net.frontend.active
            if client.socket.writable() <= 0:
                break
            tunnel.sends(body[sent : sent + 65536])
            sent += 65536
        else:
            raise AssertionError("the kernel holds all of it")
        tunnel.sends(body[sent:])
        tunnel.ends()
        if slow:
            for _ in range(5):
                await net.passes(LINGER_S)
        assert (await talk.answer()).body == body
        assert await talk.ends() == b""
        await net.passes(LINGER_S)
        assert not net.frontend.active
        assert net.finished("ok") == 1


async def test_a_client_that_does_not_close_is_left(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/x", "Connection: close"))
        serve(net, ok())
        assert (await talk.answer()).body == b"ok"
        await send(net, talk, b"more that nobody reads")
        assert net.frontend.active
        await net.passes(LINGER_S)
        assert not net.frontend.active


# A half-close


@pytest.mark.parametrize("many", [1, 3])
async def test_a_client_that_ends_behind_its_requests_gets_its_answers(mock_clock: MockClock, many: int) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, b"".join(get(f"/{n}") for n in range(many)))
        await talk.stream.send_eof()
        for n in range(many):
            await settled(lambda n=n: len(net.tunnels) == n + 1)
            net.tunnel.answers()
            await net.passes(3600)
            assert net.tunnel.reset is None, "a half-close is no end"
            serve(net, ok(b"%d" % n))
            assert (await talk.answer()).body == b"%d" % n
        assert await talk.ends() == b""
        await settled(lambda: not net.frontend.active)
        assert net.finished("ok") == many


async def test_own_answers_are_all_there_behind_a_half_close(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", **MODELS)
        client = await net.connect()
        await client.send_all(get("/v1/models") * 50)
        await client.send_eof()
        talk = HttpTalk(client)
        for _ in range(50):
            assert (await talk.answer()).status == 200
        assert await talk.ends() == b""


@pytest.mark.parametrize("sent", range(len(b"POST "), len(post(b'{"model": "m"}')), 9))
async def test_a_client_that_ends_within_a_request(mock_clock: MockClock, sent: int) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post(b'{"model": "m"}')[:sent])
        await talk.stream.send_eof()
        await settled(lambda: not net.frontend.active)
        assert net.tunnels == []


async def test_half_a_request_behind_a_whole_one_and_the_end(mock_clock: MockClock) -> None:
    for rest in (get("/2")[:12], post(b"x" * 10, "/2")[:-3]):
        async with network(mock_clock, http=True) as net:
            net.add("a")
            talk = await ask(net, get("/1") + rest)
            await talk.stream.send_eof()
            await settled()
            serve(net, ok())
            await settled(lambda net=net: not net.frontend.active)
            assert not any(b"/2" in tunnel.data for tunnel in net.tunnels if not tunnel.reset)


# What is no request


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000, 431),
        (post_chunked(b"").replace(b"\r\n0\r\n", b"\r\nzz\r\n"), 400),
        (b"\r\n" + get(), 400),
    ],
)
@pytest.mark.parametrize("is_second", [False, True])
async def test_what_is_refused_ends_the_connection(mock_clock: MockClock, said: bytes, status: int, is_second: bool) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        client = await net.connect()
        await client.send_all(get("/first") * is_second + said + get("/behind"))
        talk = HttpTalk(client)
        if is_second:
            await settled(lambda: net.tunnels)
            serve(net, ok())
            assert (await talk.answer()).status == 200
        answer = await talk.answer()
        assert (answer.status, answer.fields["connection"]) == (status, "close")
        assert await talk.ends() == b""
        assert len(net.tunnels) == is_second


async def test_a_head_that_does_not_come(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        for first in (b"", get("/0")):
            talk = await ask(net, first + get("/slow")[:10])
            if first:
                serve(net, ok())
                assert (await talk.answer()).status == 200
                await settled()
            await net.passes(HEAD_WITHIN_S - 1)
            await send(net, talk, b"a")
            await net.passes(1.1)
            answer = await talk.answer()
            assert (answer.status, answer.fields["connection"]) == (408, "close")
            assert await talk.ends() == b""
            await talk.stream.aclose()
            await settled(lambda: not net.frontend.active)


async def test_a_body_may_take_as_long_as_it_takes(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        said = post(b'{"model": "m"}')
        talk = await ask(net, said[:-3])
        await net.passes(9 * HEAD_WITHIN_S)
        await send(net, talk, said[-3:-2])
        await net.passes(9 * HEAD_WITHIN_S)
        await send(net, talk, said[-2:])
        net.tunnel.answers()
        await net.passes(9 * HEAD_WITHIN_S)
        serve(net, ok())
        assert (await talk.answer("POST")).status == 200


@pytest.mark.parametrize("replay", ["opened", "first-byte"])
@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00binary", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n"])
async def test_what_is_no_http_is_a_tunnel(mock_clock: MockClock, said: bytes, replay: str) -> None:
    for size in (1, 100):
        async with network(mock_clock, http=True, replay=replay) as net:
            net.add("a")
            client = await net.connect()
            for n in range(0, len(said), size):
                await client.send_all(said[n : n + size])
                await settled()
            await settled(lambda net=net: net.tunnels and net.tunnel.data == said)
            (entry,) = net.frontend.active
            assert isinstance(entry, L4Client)
            net.tunnel.answers()
            net.tunnel.sends(b"\x00raw")
            assert await client.receive_some() == b"\x00raw"
            await client.send_all(b"and more")
            await settled(lambda net=net: net.tunnel.data == said + b"and more")
            await client.send_eof()
            await settled(lambda net=net: net.tunnel.eof)
            net.tunnel.ends()
            await settled(lambda net=net: not net.frontend.active)
            assert net.finished("ok") == 1
            assert net.frontend.counters.totals.received == len(said) + 8


PROXIED = [b"CONNECT box:443", b"GET http://box/", b"M-SEARCH *"]


@asynccontextmanager
async def heard(clock: MockClock) -> AsyncIterator[tuple[Net, int]]:
    """An entry with a port of which no person said what it is for; a node says that its service speaks HTTP."""
    async with network(clock, http=True) as net:
        net.add("a", http=("default",))
        yield net, net.frontend.listen(Endpoint.parse("127.0.0.1:0"))[0].port


@pytest.mark.parametrize("size", [7, 100])
@pytest.mark.parametrize("line", PROXIED)
async def test_http_of_another_kind_is_a_tunnel_where_no_person_said_http(
    mock_clock: MockClock, line: bytes, size: int
) -> None:
    said = line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nand more"
    async with heard(mock_clock) as (net, port):
        client = await net.connect(port=port)
        for n in range(0, len(said), size):
            await client.send_all(said[n : n + size])
            await settled()
        await settled(lambda: net.tunnels and net.tunnel.data == said)
        assert [type(entry) for entry in net.frontend.active] == [L4Client]
        net.tunnel.answers()
        net.tunnel.sends(b"HTTP/1.1 200 OK\r\n\r\n\x00raw")
        assert await client.receive_some() == b"HTTP/1.1 200 OK\r\n\r\n\x00raw"


@pytest.mark.parametrize("line", PROXIED)
async def test_but_not_where_one_did_nor_behind_a_request(mock_clock: MockClock, line: bytes) -> None:
    said = line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with heard(mock_clock) as (net, port):
        for talk in (HttpTalk(await net.connect()), HttpTalk(await net.connect(port=port))):
            if talk.stream.socket.getpeername()[1] == port:
                await talk.stream.send_all(get())
                await settled(lambda: net.tunnels)
                serve(net, ok())
                assert (await talk.answer()).status == 200
            await talk.stream.send_all(said)
            assert (await talk.answer()).status in (400, 501)
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("line", PROXIED)
async def test_nor_where_the_service_has_models(mock_clock: MockClock, line: bytes) -> None:
    async with heard(mock_clock) as (net, port):
        net.add("b", http=("default",), **MODELS)
        talk = HttpTalk(await net.connect(port=port))
        await talk.stream.send_all(line + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await talk.answer()).status in (400, 501)
        assert not net.tunnels


async def test_a_web_page_may_not_ask_so_either(mock_clock: MockClock) -> None:
    async with heard(mock_clock) as (net, port):
        talk = HttpTalk(await net.connect(port=port))
        await talk.stream.send_all(b"PURGE / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\n\r\n")
        assert (await talk.answer()).status == 403
        assert not any(tunnel.data for tunnel in net.tunnels)


async def test_no_http_and_no_peer(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, hold_s=0) as net:
        client = await net.connect(sends=b"\x16\x03\x01binary")
        await net.passes(5)
        await HttpTalk(client).ends()
        await settled(lambda: not net.frontend.active)
        assert net.finished("turned_away") == 1


# The frontend


async def test_both_kinds_of_clients_at_one_entry(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        port = net.frontend.listen(Endpoint.parse("127.0.0.1:0"))[0].port
        talk = await ask(net, get())
        other = socket.create_connection(("127.0.0.1", port))
        await settled(lambda: len(net.frontend.active) == 2)
        assert len(net.tunnels) == 2
        assert net.in_flight() == {"a": 2}
        assert sorted(client.flow for client in net.frontend.active) == [Flow(1, 1), Flow(2, 1)]
        net.tunnels[0].answers()
        net.tunnels[0].sends(ok())
        assert (await talk.answer()).status == 200
        assert net.in_flight() == {"a": 1}
        reset(other)


async def test_too_many_connections(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True, max_connections=1) as net:
        net.add("a")
        first = await ask(net, get())
        second = HttpTalk(await net.connect())
        answer = await second.answer()
        assert (answer.status, answer.fields["connection"]) == (503, "close")
        assert "limit of 1" in answer.message
        assert await second.ends() == b""
        await second.stream.aclose()
        await settled(lambda: len(net.frontend.active) == 1)
        assert net.finished("turned_away") == net.frontend.counters.totals.failed == 1
        serve(net, ok())
        assert (await first.answer()).status == 200


async def test_a_web_page_may_not_ask_in_a_later_request_either(mock_clock: MockClock) -> None:
    evil = get("/v1/chat", "Origin: https://evil.example")
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/1") + evil + get("/3"))
        serve(net, ok())
        assert (await talk.answer()).status == 200
        answer = await talk.answer()
        assert (answer.status, answer.fields["connection"]) == (403, "close")
        assert await talk.ends() == b""
        assert len(net.tunnels) == 1


@pytest.mark.parametrize("said", [get("/x", "Origin: https://evil.example"), get().replace(b"localhost", b"evil.example")])
async def test_a_web_page_may_not_ask(mock_clock: MockClock, said: bytes) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        assert (await (await ask(net, said)).answer()).status == 403
        assert net.tunnels == []
    async with network(mock_clock, http=True, browser_check=False) as net:
        net.add("a")
        await ask(net, said)
        assert len(net.tunnels) == 1


async def test_drain_closes_idle_connections_and_lets_requests_end(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        idle = await ask(net, get())
        serve(net, ok())
        assert (await idle.answer()).status == 200
        fresh = HttpTalk(await net.connect())
        busy = await ask(net, get("/busy") + get("/behind"))
        net.frontend.stop_listening()
        for talk in (idle, fresh):
            assert await talk.ends() == b""
            await talk.stream.aclose()
        await settled(lambda: len(net.frontend.active) == 1)
        serve(net, ok(b"to the end"))
        assert (await busy.answer()).body == b"to the end"
        assert await busy.ends() == b""
        await busy.stream.aclose()
        await settled(lambda: net.frontend.idle.is_set())
        assert len(net.tunnels) == 2


async def test_abort_all_resets(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        idle, busy = HttpTalk(await net.connect()), await ask(net, get())
        net.frontend.abort_all("the drain is over")
        assert net.tunnel.reset == "the drain is over"
        assert await is_reset(idle.stream)
        assert await is_reset(busy.stream)


async def test_bytes_are_not_counted_twice(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, post(b"x" * 1000, "/x"))
        assert net.frontend.bytes_moved() == (1000, 0)
        net.tunnel.answers()
        net.tunnel.sends(ok(b"y" * 500)[:-100])
        assert net.frontend.bytes_moved() == (1000, 400)
        net.tunnel.sends(b"y" * 100)
        assert (await talk.answer("POST")).body == b"y" * 500
        assert net.frontend.bytes_moved() == (1000, 500)
        await send(net, talk, post(b"z" * 10, "/x"))
        assert net.frontend.bytes_moved() == (1010, 500)
        talk.stream.socket.close()
        await settled()
        serve(net, ok(b""))
        await settled(lambda: not net.frontend.active)
        assert net.frontend.bytes_moved() == (1010, 500)


async def test_requests_without_a_model_list_go_to_a_node(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a")
        talk = await ask(net, get("/v1/models"))
        serve(net, ok(b"[]"))
        assert (await talk.answer()).body == b"[]"


async def test_lists_come_from_the_entry(mock_clock: MockClock) -> None:
    async with network(mock_clock, http=True) as net:
        net.add("a", **MODELS)
        net.add("b", models=pack({"default": catalog("vllm", [Model("o")])}))
        talk = await ask(net, get("/v1/models"))
        answer = await talk.answer()
        assert [row["id"] for row in json.loads(answer.body)["data"]] == ["m", "n", "o"]
        await send(net, talk, get("/v1/models").replace(b"GET", b"HEAD"))
        head = await talk.answer("HEAD")
        assert (head.body, head.fields["content-length"]) == (b"", str(len(answer.body)))
        await send(net, talk, get("/v1/models/zz"))
        assert (await talk.answer()).status == 404
        await send(net, talk, get("/v1/models/o"))
        assert json.loads((await talk.answer()).body)["id"] == "o"
        assert net.tunnels == []
        assert net.frontend.bytes_moved() == (0, 0)
