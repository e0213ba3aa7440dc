"""What people really run goes through, byte for byte: one entry, one exit, a service for each protocol."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import socket
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest
from harness import SLACK, http_get, wait_until
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Ping, Pong, Request, TextMessage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleet import Fleet
    from harness import Address

GIB = 1 << 30
MIB = 1 << 20
CHUNK = 1 << 18
STALL_S = 20.0
STALL_BYTES = 64 * MIB
TIMEOUT_S = 30.0  # more than the stall


class Tunnels:
    """The services by name: where clients connect at the entry, and the backend behind the exit."""

    def __init__(self, fleet: Fleet) -> None:
        self.backends = {
            "nginx": fleet.nginx("nginx"),
            "redis": fleet.redis(),
            "lag": fleet.backend("lag", "lag", "--size", str(STALL_BYTES), "--delay", str(STALL_S)),
            **{mode: fleet.backend(mode) for mode in ("banner", "echo", "tail", "websocket", "reset")},
        }
        self.exit = fleet.daemon("exit", backends=self.backends)
        services = [*self.backends, "nobody"]
        self.entry = fleet.daemon("entry", "--hold", "500ms", services=services, peer=self.exit)
        wait_until(lambda: "exit" in self.entry.offers(), within=5, what="the entry sees the exit")

    def address(self, service: str) -> Address:
        return self.entry.entry(service)

    def connect(self, service: str) -> socket.socket:
        return socket.create_connection(self.address(service), timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def tunnels(fleet: Fleet) -> Tunnels:
    return Tunnels(fleet)


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes of which no two MiB are alike, so that a lost, doubled or swapped one changes the digest."""
    noise = random.Random(size).randbytes(MIB - 8)
    for number in range(size // MIB):
        yield struct.pack(">Q", number) + noise


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(CHUNK, size - len(data)))
        assert chunk, f"closed after {len(data)} of {size} bytes"
        data += chunk
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    while chunk := sock.recv(CHUNK):
        data += chunk
    return bytes(data)


# HTTP


def test_http_keep_alive_serves_many_requests_on_one_connection(tunnels) -> None:
    page = random.Random(1).randbytes(100_000)
    (tunnels.backends["nginx"].directory / "www" / "page").write_bytes(page)
    connection = http.client.HTTPConnection(*tunnels.address("nginx"), timeout=TIMEOUT_S)
    connection.connect()
    port = connection.sock.getsockname()[1]
    for _ in range(100):
        connection.request("GET", "/page")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, page)
    assert connection.sock.getsockname()[1] == port
    connection.close()


def test_one_gib_down_arrives_exactly(tunnels, figure) -> None:
    expected = hashlib.sha256()
    with (tunnels.backends["nginx"].directory / "www" / "gib").open("wb") as file:
        for block in blocks(GIB):
            expected.update(block)
            file.write(block)
    connection = http.client.HTTPConnection(*tunnels.address("nginx"), timeout=TIMEOUT_S)
    begun = time.monotonic()
    connection.request("GET", "/gib", headers={"Connection": "close"})
    answer = connection.getresponse()
    assert answer.status == 200
    digest, buffer = hashlib.sha256(), memoryview(bytearray(MIB))
    while size := answer.readinto(buffer):
        digest.update(buffer[:size])
    figure("1 GiB down", f"{GIB / 1e6 / (time.monotonic() - begun):.0f} MB/s")
    connection.close()
    (tunnels.backends["nginx"].directory / "www" / "gib").unlink()
    assert digest.digest() == expected.digest()


def test_one_gib_up_arrives_exactly(tunnels, figure) -> None:
    expected = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for block in blocks(GIB):
            expected.update(block)
            yield block

    connection = http.client.HTTPConnection(*tunnels.address("nginx"), timeout=TIMEOUT_S)
    begun = time.monotonic()
    connection.request("PUT", "/upload/gib", body(), {"Content-Length": str(GIB), "Connection": "close"})
    answer = connection.getresponse()
    assert answer.status == 201, answer.read()
    figure("1 GiB up", f"{GIB / 1e6 / (time.monotonic() - begun):.0f} MB/s")
    connection.close()
    arrived = tunnels.backends["nginx"].directory / "www" / "upload" / "gib"
    assert arrived.stat().st_size == GIB
    assert file_digest(arrived) == expected.digest()
    arrived.unlink()


def file_digest(path: Path) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(MIB))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.digest()


def test_curl_is_served_like_any_client(tunnels) -> None:
    host, port = tunnels.address("nginx")
    done = subprocess.run(["curl", "-sS", f"http://{host}:{port}/name"], capture_output=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (0, b"nginx\n"), done.stderr


# WebSocket


class WebSocket:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.pending: list[object] = []
        self.send(Request(host="test", target="/"))
        assert isinstance(self.next_event(), AcceptConnection)

    def send(self, event) -> None:
        self.sock.sendall(self.protocol.send(event))

    def next_event(self) -> object:
        while not self.pending:
            data = self.sock.recv(CHUNK)
            assert data, "closed"
            self.protocol.receive_data(data)
            self.pending.extend(self.protocol.events())
        return self.pending.pop(0)

    def next_message(self) -> bytes | str:
        parts = []
        while True:
            event = self.next_event()
            assert isinstance(event, Message), event
            parts.append(event.data)
            if event.message_finished:
                return parts[0][:0].join(parts)


def test_websocket_messages_pings_and_close(tunnels) -> None:
    with tunnels.connect("websocket") as sock:
        client = WebSocket(sock)
        client.send(TextMessage("grüße"))
        assert client.next_message() == "grüße"
        big = random.Random(2).randbytes(3 * MIB)
        for at in range(0, len(big), MIB):
            client.send(BytesMessage(big[at : at + MIB], message_finished=at + MIB == len(big)))
        assert client.next_message() == big
        client.send(Ping(b"there?"))
        assert client.next_event() == Pong(b"there?")
        client.send(CloseConnection(1000, "bye"))
        assert client.next_event() == CloseConnection(1000, "bye")
        assert sock.recv(1) == b""


# Redis


def redis_cli(address: Address, *arguments: str, given: bytes = b"") -> bytes:
    host, port = address
    command = ["redis-cli", "-h", host, "-p", str(port), *arguments]
    return subprocess.run(command, input=given, capture_output=True, timeout=TIMEOUT_S, check=True).stdout


def test_redis_values_survive(tunnels) -> None:
    address = tunnels.address("redis")
    value = random.Random(3).randbytes(5 * MIB)
    assert redis_cli(address, "-x", "set", "blob", given=value) == b"OK\n"
    # redis-cli ends raw output with a newline of its own.
    assert redis_cli(address, "--raw", "get", "blob") == value + b"\n"


def test_redis_pipelined(tunnels) -> None:
    address = tunnels.address("redis")
    commands = b"".join(
        b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)
        for key, value in ((b"key:%d" % n, b"v" * (n % 500)) for n in range(20_000))
    )
    report = redis_cli(address, "--pipe", given=commands)
    assert b"errors: 0, replies: 20000" in report, report
    assert redis_cli(address, "--raw", "strlen", "key:19999") == b"499\n"
    with tunnels.connect("redis") as sock:
        sock.sendall(b"".join(b"GET key:%d\r\n" % n for n in range(20_000)))
        expected = b"".join(b"$%d\r\n%s\r\n" % (n % 500, b"v" * (n % 500)) for n in range(20_000))
        assert read_exactly(sock, len(expected)) == expected


# Half-close, order of speaking, resets


def test_half_closing_client_gets_its_answer(tunnels) -> None:
    """printf ... | nc -N"""
    host, port = tunnels.address("tail")
    text = random.Random(4).randbytes(1_000_000)
    done = subprocess.run(["nc.openbsd", "-N", host, str(port)], input=text, capture_output=True, timeout=TIMEOUT_S)
    assert done.stdout.decode() == f"{len(text)} {hashlib.sha256(text).hexdigest()}\n", done.stderr


def test_half_closing_client_that_sends_nothing(tunnels) -> None:
    host, port = tunnels.address("tail")
    done = subprocess.run(["nc.openbsd", "-N", host, str(port)], input=b"", capture_output=True, timeout=TIMEOUT_S)
    assert done.stdout.decode() == f"0 {hashlib.sha256(b'').hexdigest()}\n", done.stderr


def test_client_that_sends_first(tunnels) -> None:
    with tunnels.connect("echo") as sock:
        for size in (1, 100, 70_000, 3 * MIB):
            data = random.Random(size).randbytes(size)
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            assert read_exactly(sock, size) == data
            sender.join()
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_client_that_waits_for_the_banner(tunnels) -> None:
    with tunnels.connect("banner") as sock:
        greeting = b"220 banner ready\r\n"
        assert read_exactly(sock, len(greeting)) == greeting
        sock.sendall(b"EHLO test\r\n")
        assert read_exactly(sock, 11) == b"EHLO test\r\n"


def test_reset_of_the_client_reaches_the_backend(tunnels) -> None:
    backend = tunnels.backends["reset"]
    with tunnels.connect("reset") as sock:
        sock.sendall(b"hello\n")
        assert read_exactly(sock, 6) == b"hello\n"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: "reset after 1 lines" in backend.seen(), within=5, what="the backend saw RST")


def test_reset_of_the_backend_reaches_the_client(tunnels) -> None:
    with tunnels.connect("reset") as sock:
        sock.sendall(b"reset\n")
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)


# Nobody there


def test_http_client_without_any_backend_is_told_so_in_json(tunnels) -> None:
    begun = time.monotonic()
    response = http_get(tunnels.address("nobody"))
    assert time.monotonic() - begun >= 0.5  # it was held first
    assert response.status == 503
    assert int(response.headers["retry-after"]) > 0
    assert response.headers["content-type"].startswith("application/json")
    assert response.json()["error"]


def test_other_client_without_any_backend_is_closed(tunnels) -> None:
    with tunnels.connect("nobody") as sock:
        sock.sendall(os.urandom(64))
        with contextlib.suppress(ConnectionResetError):
            assert read_to_end(sock) == b""


# Slow readers


def test_readers_that_stop_for_20_s_in_the_middle_of_64_mib(tunnels, figure) -> None:
    """A client that stops reading and a backend that does, at the same time; others are served meanwhile."""
    blob = tunnels.backends["nginx"].directory / "www" / "blob"
    blob.write_bytes(b"".join(blocks(STALL_BYTES)))
    uploaded: list[bytes] = []

    def upload() -> None:
        with tunnels.connect("lag") as sock:
            for block in blocks(STALL_BYTES):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)
            uploaded.append(read_to_end(sock))

    uploader = threading.Thread(target=upload)
    uploader.start()
    with tunnels.connect("nginx") as sock:
        sock.sendall(b"GET /blob HTTP/1.0\r\n\r\n")
        half = read_exactly(sock, STALL_BYTES // 2)
        until = time.monotonic() + STALL_S
        slowest = 0.0
        while time.monotonic() < until:
            begun = time.monotonic()
            assert http_get(tunnels.address("nginx"), "/name").body == b"nginx\n"
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))  # the stall is the subject
        answer = half + read_to_end(sock)
    uploader.join()
    rss = {node.name: node.rss_bytes() / 1e6 for node in (tunnels.entry, tunnels.exit)}
    figure("beside two stalled 64 MiB transfers", f"slowest request {slowest * 1e3:.0f} ms, RSS {rss}")
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    assert hashlib.sha256(answer.partition(b"\r\n\r\n")[2]).hexdigest() == digest
    assert uploaded == [f"{STALL_BYTES} {digest}\n".encode()]
    assert tunnels.backends["lag"].seen() == ["stopped", "goes on"]
    assert slowest < 1.0 * SLACK
