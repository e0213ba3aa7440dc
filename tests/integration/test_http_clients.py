"""Requests as official clients send them (recorded_clients.py), through an entry without a backend, to another node's."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING

import pytest
from harness import SLACK, wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from tests.support.recorded_clients import LISTS, asking, streaming

if TYPE_CHECKING:
    from fleet import Fleet, ModelServer
    from harness import Daemon

TIMEOUT = 20 * SLACK


@pytest.fixture(scope="module")
def box(fleet: Fleet) -> ModelServer:
    return fleet.model_server("gemma", "gemma")


@pytest.fixture(scope="module")
def entry(fleet: Fleet, box: ModelServer) -> Daemon:
    def join(name: str, server: ModelServer | None, peer: Daemon | None) -> Daemon:
        offer = () if server is None else ("--backend", f"http://127.0.0.1:{server.address[1]}")
        return fleet.daemon(name, "--listen", "http://127.0.0.1:0", *offer, peer=peer, services=())

    first = join("n0", box, None)
    join("n1", fleet.model_server("other", "llama"), first)
    entry = join("n2", None, first)
    wait_until(lambda: len(entry.api("models")["models"]) == 2, within=20, what="the entry knows both models")
    return entry


def connected(entry: Daemon) -> socket.socket:
    return socket.create_connection(entry.entry(), timeout=TIMEOUT)


def answer_on(sock: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer


def test_each_client_gets_its_answers_on_one_connection(entry: Daemon) -> None:
    with connected(entry) as sock:
        for what, data in asking().items():
            sock.sendall(data)
            answer = answer_on(sock)
            body = answer.read()
            assert (what, answer.status, answer.headers["X-Federation-Node"]) == (what, 200, "n0"), body
            assert not answer.will_close, what
            said = json.loads(body)
            if "audio" in what:
                assert (said["text"], said["size"]) == ("heard", len(data.partition(b"\r\n\r\n")[2]))


@pytest.mark.parametrize("client", LISTS)
def test_lists_in_the_form_that_a_client_reads(entry: Daemon, client: str) -> None:
    with connected(entry) as sock:
        sock.sendall(LISTS[client])
        said = json.loads(answer_on(sock).read())
    rows = said["models"] if "ollama" in client else said["data"]
    assert [row["name"] if "ollama" in client else row["id"] for row in rows] == ["gemma", "llama"]
    assert ("has_more" in said) is (client == "anthropic")
    assert said.get("object") == ("list" if client in ("openai", "open webui") else None)


@pytest.mark.parametrize("client", streaming())
def test_a_stream_comes_whole_and_the_stop_button_ends_it(entry: Daemon, box: ModelServer, client: str) -> None:
    last = {"openai": b"data: [DONE]\n\n", "open webui": b"data: [DONE]\n\n", "anthropic": b'{"type": "message_stop"}\n\n'}
    with connected(entry) as sock:
        sock.sendall(streaming(n=5, every=0.001)[client])
        answer = answer_on(sock)
        assert answer.read().endswith(last.get(client, b'"done": true}\n'))
        assert not answer.will_close
        had = len(box.seen())
        sock.sendall(streaming(n=2000)[client])
        answer_on(sock).read(40)
    wait_until(lambda: "gone" in box.seen()[had:], within=1, what="the generation ends")


def test_a_websocket_with_an_extension_and_all_kinds_of_frames(entry: Daemon) -> None:
    """An offer of compression that the server does not take up; text, bytes and a ping there and back; a clean close."""
    client = WSConnection(ConnectionType.CLIENT)
    events: list[object] = []
    with connected(entry) as sock:
        wanted = Request(host="127.0.0.1:8484", target="/v1/realtime?model=gemma", extensions=[PerMessageDeflate()])
        sock.sendall(client.send(wanted))

        def heard() -> object:
            while not events:
                client.receive_data(sock.recv(65536) or None)
                events.extend(client.events())
            return events.pop(0)

        accepted = heard()
        assert isinstance(accepted, AcceptConnection)
        assert accepted.extensions == []
        for message in (TextMessage("hello"), BytesMessage(b"\0" * 100_000)):
            sock.sendall(client.send(message))
            parts = [heard()]
            while not parts[-1].message_finished:  # type: ignore[attr-defined]
                parts.append(heard())
            assert type(message.data)().join(part.data for part in parts) == message.data  # type: ignore[attr-defined]
        sock.sendall(client.send(Ping(b"there?")))
        assert heard() == Pong(b"there?")
        sock.sendall(client.send(CloseConnection(1000)))
        assert isinstance(heard(), CloseConnection)
        assert sock.recv(1) == b""
