"""Fuzzing of everything that reads what strangers, members and clients say: run by scripts/fuzz.

A target takes any bytes, checks what it gets for them, and returns in a word or two how it went. Whatever else it raises
is a crash, and so is an input that takes longer than SLOW_S. Inputs are mutations of the corpus and of well-formed
messages; one that went as none before is mutated further. tests/test_corpus.py replays the corpus in every test run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import struct
import sys
import time
import traceback
import zlib
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgpack
import structlog
import trio
import trio.testing
from google.protobuf.message import DecodeError
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.pubsub.pb import rpc_pb2

from federation.errors import (
    HandshakeFailed,
    HttpInvalid,
    ProtocolViolation,
    RecordInvalid,
    TokenError,
    TokenRefused,
    UsageError,
)
from federation.forward.http import asks
from federation.forward.http.framing import ChunkedBody
from federation.forward.http.head import HeadBuffer, Opening, RequestHead, opening, parse_request, parse_response
from federation.forward.http.paths import MAX_NAME
from federation.forward.http.rewrite import backend_head, client_head
from federation.forward.reject import Rejection
from federation.forward.web_pages import _REQUEST_LINE, MAX_HEAD, Heard, Refusal, Request, Rules
from federation.mesh import gossip as gossip_module
from federation.mesh.models import MAX_MODELS, MAX_PACKED_BYTES, Model, catalog, is_name, pack, unpack
from federation.mesh.records import Gpu, NodeData, decode, encode
from federation.mesh.tokens import Token
from federation.net import identity as identities
from federation.net.dial.address import PeerAddress
from federation.net.link import mux
from federation.net.link.frames import ANY_LOAD, FULL
from federation.net.link.handshake import TokenNoise
from federation.net.link.seal import MAX_PLAINTEXT, Sealer, Unsealer
from federation.net.pubsub import canonical, is_genuine
from federation.net.wire import MAX_RECORD_BYTES
from tests.support.gossip import TOKEN, FakeTopic, Member, foreign_topic, sign
from tests.support.h11_oracle import compare
from tests.support.links import End
from tests.support.smuggling import ANSWERS, ATTACKS, BAD_ANSWERS, BAD_CHUNKS, GET, POST, TE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CORPUS = Path(__file__).parent / "corpus"
SLOW_S = 2.0
MAX_INPUT = 200_000
POOL = 400  # inputs of one target that are mutated further
TURN_S = 0.5  # one target, then the next
KEPT, MAX_KEPT_BYTES = 20, 2048  # --keep: what is worth files in the repository, for one target
NOW = datetime(2026, 1, 1, tzinfo=timezone.utc)
KEY = b"k" * 32
STATIC = b"s" * 32
TOPIC = foreign_topic()


# Targets


def token(data: bytes) -> str:
    try:
        found = Token.decode(data.decode("latin-1"))
    except TokenError as error:
        return type(error).__name__
    assert Token.decode(found.encode()) == found
    return f"a token with {len(found.addresses)} addresses"


def record(data: bytes) -> str:
    try:
        found = decode(data, received_at=NOW)
    except RecordInvalid as error:
        return error.detail[:40]
    assert decode(encode(found), received_at=NOW) == found
    found.is_online_at(NOW)
    assert all(is_name(model.name) for listed in unpack(found.models).values() for model in listed.models)
    return "a record with " + ",".join(sorted(found.model_fields_set))


def models(data: bytes) -> str:
    """As a record brings them, and what is inflated from it."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    listed = unpack(data) or unpack(deflate.compress(data) + deflate.flush())
    rows = [model for found in listed.values() for model in found.models]
    assert len(rows) <= MAX_MODELS
    assert all(is_name(model.name) for model in rows)
    assert len(pack(listed)) <= MAX_PACKED_BYTES
    return f"{min(len(listed), 3)} services, {len(str(len(rows))) if rows else 0} digits of models"


def address(data: bytes) -> str:
    try:
        found = PeerAddress.parse(data.decode("latin-1"))
    except UsageError as error:
        return " ".join(word for word in error.detail.split()[-14:-7] if word.isalpha())
    assert PeerAddress.parse(str(found)) == found
    return "an address"


def noise(data: bytes) -> str:
    """As ciphertext from the wire; then as plaintext on its way through both ends, in pieces, and with one byte changed."""
    try:
        Unsealer(KEY).feed(data)
        outcome = "half a record"
    except ProtocolViolation as error:
        outcome = error.detail
    rng = random.Random(data)
    sealer, opener = Sealer(KEY), Unsealer(KEY)
    wire = b"".join(sealer.seal(piece) for piece in _pieces(data, rng, MAX_PLAINTEXT))
    assert b"".join(plain for piece in _pieces(wire, rng, 70_000) for plain in opener.feed(piece)) == data
    if wire:
        at = rng.randrange(len(wire))
        bent = wire[:at] + bytes([wire[at] ^ rng.randrange(1, 256)]) + wire[at + 1 :]
        heard: list[bytes] = []
        opener = Unsealer(KEY)
        try:
            for piece in _pieces(bent, rng, 70_000):
                heard += opener.feed(piece)
        except ProtocolViolation as error:
            outcome += " / " + error.detail
        assert data.startswith(b"".join(heard))
    return outcome


def identity(data: bytes) -> str:
    """As what a stranger says of itself in a handshake, as a key, as a peer id, and as the text of one."""
    outcome = ""
    try:
        identities.read_payload(data, STATIC)
        outcome += "a handshake;"
    except ProtocolViolation as error:
        outcome += error.detail + ";"
    key, owner = identities.key_in(data), identities.key_of(data)
    outcome += f"key {key is not None}, id {owner is not None};"
    for found in filter(None, (key, owner)):
        assert not identities.is_signed(b"", bytes(64), found)
        assert identities.key_of(identities.peer_id(found).to_bytes()) == found
    try:
        named = identities.read_peer_id(data.decode("latin-1"))
    except ValueError:
        return outcome
    assert str(named) == data.decode()
    return outcome + "text"


def signed(data: bytes) -> str:
    """As a row of a ledger, and as an RPC of gossip: what is left of it is signed, bounded and its own canonical form."""
    try:
        opened = TOPIC.open_signed(data)
    except RecordInvalid as error:
        outcome = f"{type(error).__name__} {error.detail[:20]}"
    else:
        assert len(opened.signed) < MAX_RECORD_BYTES + 256
        assert TOPIC.open_signed(opened.signed) == opened
        outcome = "genuine"
    try:
        rpc = rpc_pb2.RPC.FromString(data)
    except DecodeError:
        return outcome + ", no RPC"
    kept = [message for message in map(canonical, rpc.publish) if message is not None]
    assert all(canonical(message) == message for message in kept)
    genuine = sum(map(is_genuine, kept[:3]))
    return outcome + f", {min(len(kept), 3)} of {min(len(rpc.publish), 3)} messages, {genuine} genuine"


def handshake(data: bytes) -> str:
    """A stranger's bytes at the p2p port, once it got past multistream."""

    async def stranger() -> str:
        ours, theirs = trio.testing.memory_stream_pair()
        await theirs.send_all(data)
        await theirs.send_eof()
        security = TokenNoise(create_new_key_pair(b"s" * 32), lambda: [KEY])
        try:
            await security.secure_inbound(RawConnection(TrioTCPStream(ours), initiator=False))  # type: ignore[arg-type]
        except (HandshakeFailed, TokenRefused) as error:
            return error.detail
        raise AssertionError("a stranger was let in")

    return trio.run(stranger)


def frames(data: bytes) -> str:
    """Records of mux frames, cut at random, at both ends of a connection, of the present version and of the former one; a
    third of the tunnels is served."""
    rng = random.Random(data)
    outcome = ""
    for initiator, load in ((True, mux.Load(3)), (False, mux.Load(0)), (True, None), (False, None)):
        handler = _Handler(rng, load)
        m = mux.Mux(initiator=initiator, handler=handler, wake=lambda: None, load=load)
        for _ in range(rng.randrange(3)):
            if rng.random() < 0.5:
                m.open_tunnel("default", End(), End()).send(b"hello")
            else:
                m.open_request("default", End(), End(), rng.randrange(9)).send(b"hello")
        try:
            for piece in _records(data):
                m.feed(piece)
                while (out := m.next_record()) is not None:
                    assert 0 < len(out) <= MAX_PLAINTEXT
            outcome += f"took it all, {min(handler.opened, 3)} opened, {min(handler.told, 3)} told;"
        except ProtocolViolation as error:
            outcome += error.detail.translate({ord(digit): None for digit in "0123456789"}) + ";"
            m.abort("a violation")
        assert m.out_size >= 0
        m.tick()
    return outcome


class _Handler:
    def __init__(self, rng: random.Random, load: mux.Load | None) -> None:
        self.opened = self.told = 0
        self._rng = rng
        self._load = load

    def load_told(self, others: int) -> None:
        assert self._load is not None
        assert 0 <= others <= ANY_LOAD
        self.told += 1

    def watched(self, seconds: int) -> None:
        assert self._load is not None
        assert 0 <= seconds <= 255
        self.told += 1

    def look_wanted(self, service: str) -> None:
        assert service.isprintable()
        self.told += 1

    def tunnel_opened(self, channel: mux.Channel, service: str, believed: int) -> None:
        assert believed == ANY_LOAD or self._load is not None
        self.opened += 1
        channel.other = End(other=channel)
        if self._load is not None and self._load.in_flight > believed:
            channel.refuse_as_busier(self._rng.choice((self._load.in_flight, FULL)))
        elif self._rng.random() < 0.6:
            if self._load is not None:
                self._load.in_flight += 1
            channel.accept()
            channel.send(b"220 ready")
        elif self._rng.random() < 0.5:
            channel.refuse("no")

    def stream_opened(self, channel: mux.Channel) -> None:
        self.opened += 1
        channel.other = End(other=channel)

    def pong(self, payload: bytes) -> None:
        assert len(payload) == 8


class _Client:
    """What a farewell knows of a client's socket."""

    def __init__(self) -> None:
        self.said = b""
        self.ended = 0

    def send(self, data: bytes) -> None:
        assert not self.ended
        self.said += data

    def send_eof(self) -> None:
        self.ended += 1


def http(data: bytes) -> str:
    """What a client sent before it was turned away: an answer in HTTP for whoever speaks it, the bare end for others."""
    client = _Client()
    rejection = Rejection(None, client, Rules(), "no peer is available")  # type: ignore[arg-type]
    for piece in _pieces(data, random.Random(data), 65536):
        assert rejection.writable() > 0
        rejection.send(piece)
    rejection.send_eof()
    assert client.ended == 1
    assert not client.said or client.said.startswith(
        (b"HTTP/1.1 503 ", b"HTTP/1.1 403 ", b"HTTP/1.1 431 ", b"HTTP/1.1 204 ")
    )
    assert not _REQUEST_LINE.match(data) or b" HTTP/1." in data.partition(b"\n")[0]
    return client.said[9:12].decode() if client.said else "closed"


def browser(data: bytes) -> str:
    """A client's first bytes in pieces, as the entry hears them: whatever it decides, the whole says no other thing."""
    rules = Rules(frozenset({"https://chat.example"}), frozenset({"box"}), on_loopback=len(data) % 2 == 0)
    so_far = b""
    verdict: Heard | Request | Refusal = Heard.MORE
    for piece in _pieces(data, random.Random(data), 65536):
        so_far += piece
        verdict = rules.judge(so_far)
        if verdict not in (Heard.MORE, Heard.PERHAPS):
            break
        assert len(so_far) < MAX_HEAD
        assert so_far == data or _REQUEST_LINE.match(so_far) or b"\n" not in so_far
    if verdict in (Heard.MORE, Heard.PERHAPS):
        verdict = rules.judge(so_far, is_all=True)
        assert verdict not in (Heard.MORE, Heard.PERHAPS)
    if isinstance(verdict, Refusal):
        assert rules.reply(so_far, "").startswith(b"HTTP/1.1 %d " % verdict.status)
        return f"{verdict.status} {verdict.why[:18]}"
    if isinstance(verdict, Request):
        assert rules.judge(so_far[: verdict.size]) == verdict
        return "a browser's"
    return "goes on, HTTP" if _REQUEST_LINE.match(so_far) else "goes on"


def _read_head(pieces: Iterator[bytes] | list[bytes]) -> tuple[int, RequestHead] | str:
    buffer, used = HeadBuffer(), 0
    try:
        for piece in pieces:
            n, head = buffer.feed(piece)
            used += n
            if head is not None:
                return used, parse_request(head)
    except HttpInvalid as error:
        return f"{error.status} {error.detail}"
    return "half a head"


def head(data: bytes) -> str:
    """A request of a client: split anyhow it is one thing; h11 takes it too; and what the backend gets is framed as it was.
    Then the same bytes as an answer of a backend."""
    found = _read_head([data])
    assert _read_head(_pieces(data, random.Random(data), 70_000)) == found
    kinds = {opening(data[:n]) for n in (1, 3, 20, len(data))} - {Opening.MORE}
    assert len(kinds) < 2
    outcome = found if isinstance(found, str) else "a request"
    if not isinstance(found, str):
        assert kinds == {Opening.HTTP}
        compare(data)
        request = found[1]
        if len(request.fields) < 90 and found[0] < 60_000:  # the head for the backend is a little larger
            sent = parse_request(backend_head(request, "192.0.2.7"))
            assert (sent.method, sent.target, sent.framing) == (request.method, request.target, request.framing)
    asked = parse_request(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
    end = data.find(b"\r\n\r\n")
    try:
        answer = parse_response(data[: end + 4] if end >= 0 else data + b"\r\n\r\n", asked)
    except HttpInvalid as error:
        return f"{outcome} / {error.detail}"
    if len(answer.fields) > 90:
        return f"{outcome} / a long answer"
    again = parse_response(client_head(answer, asked, "bergen", keep_alive=True), asked)
    assert (again.status, again.framing) == (answer.status, answer.framing)
    return f"{outcome} / an answer"


def framing(data: bytes) -> str:
    """A chunked body in pieces: any split has one verdict, h11 takes what we take, and a sound begin can be ended."""
    outcomes = []
    for pieces in ([data], _pieces(data, random.Random(data), 1000)):
        body, used, content = ChunkedBody(), 0, list[memoryview]()
        try:
            for piece in pieces:
                used += body.feed(memoryview(piece), content)
                if body.is_over:
                    break
            outcomes.append((used, b"".join(content), body.is_over, body.ending(b"gone\n")))
        except HttpInvalid as error:
            outcomes.append((error.status,))
    assert outcomes[0] == outcomes[1]
    if len(outcomes[0]) == 1:
        return "refused"
    request = b"POST / HTTP/1.1\r\nHost: box\r\nTransfer-Encoding: chunked\r\n\r\n"
    compare(request + data)
    used, content, is_over, ending = outcomes[0]
    if ending is not None:
        whole = compare(request + data + ending)
        assert whole.content.startswith(content + b"gone\n")
        assert whole.end is not None
    return f"over {is_over}, content {min(len(content), 3)}, can be ended {ending is not None}"


def gossip(data: bytes) -> str:
    """A member's side of a ledger sync, towards a listener; its first byte decides whether it hangs up or waits."""

    async def member() -> str:
        me = Member("me")
        me.knows(NodeData(peer_id="bob", last_seen=NOW, incarnation=1, seq=1))
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(me.host.handlers[TOKEN.ledger_protocol()], SimpleNamespace(peer_id="eve"), theirs)
            await ours.send_all(data)
            await ours.send_eof()
            heard = 0
            try:
                while chunk := await ours.receive_some():
                    heard += len(chunk)
            except trio.BrokenResourceError:
                pass
        assert all(peer_id == row.record.peer_id for peer_id, row in me.ledger._rows.items())
        return f"{min(heard, 50)} bytes back, {min(len(me.ledger), 4)} rows, {me.host.offences[:1]}"

    gossip_module.Topic = FakeTopic  # type: ignore[assignment,misc]
    return trio.run(member, clock=trio.testing.MockClock(autojump_threshold=0))


def body(data: bytes) -> str:
    """A target in its first line, then a body: in pieces and at once, short and as if it were long."""
    line, _, rest = data.partition(b"\n")
    where = line.decode("utf-8", "replace")
    kind = b"multipart/form-data; boundary=b" if rest.startswith(b"--b") else b"application/json"

    def asked(pieces: Iterable[bytes], whole: int) -> asks.Asked:
        asks.WHOLE = whole
        peek = asks.Peek("POST", where, content_type=kind, session=line[:3] if line.endswith(b"s") else b"")
        for piece in pieces:
            peek.feed(piece)
            if len(rest) < 2000:
                assert len(peek.so_far.model) <= MAX_NAME
        return peek.finish()

    usual = asks.WHOLE
    try:
        found = asked([rest], usual)
        assert asked(_pieces(rest, random.Random(data), 65536), usual) == found
        assert asked(_pieces(rest, random.Random(data), 300), -1) == found
    finally:
        asks.WHOLE = usual
    assert not (found.trouble and found.keys.k0)
    path = f"{found.id.partition('/')[0]}{' other target' * (found.target != where)}"
    return f"{path}, {found.trouble[:30] or ('a model' if found.model else 'none')}, keys {[len(key) for key in found.keys]}"


TARGETS: dict[str, Callable[[bytes], str]] = {
    "token": token, "record": record, "models": models,
    "address": address, "noise": noise, "handshake": handshake, "identity": identity,
    "signed": signed, "frames": frames, "http": http, "browser": browser, "gossip": gossip, "body": body,
    "head": head, "framing": framing,
}  # fmt: skip


def _pieces(data: bytes, rng: random.Random, most: int) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        n = rng.choice((1, 2, 3, 100, most)) if rng.random() < 0.5 else rng.randrange(1, most)
        yield data[at : at + n]
        at += n


def _records(data: bytes) -> Iterator[bytes]:
    """A record is whole frames: cut where the frames' own lengths say, as far as they can be believed."""
    at = 0
    while at < len(data):
        end = at
        while end + 7 <= len(data) and end - at < 200:
            end += 7 + struct.unpack_from(">H", data, end + 5)[0]
        end = max(end, at + 1)
        yield data[at : min(end, at + MAX_PLAINTEXT)]
        at = end


# Well-formed messages to begin with


def _full_record(rng: random.Random) -> NodeData:
    return NodeData(
        peer_id=rng.choice(("bob", "carol", "me")), name="box", version="1", incarnation=rng.randrange(4),
        seq=rng.choice((0, 1, 2**63 - 1)), last_seen=NOW, available_vram=1 << 34, total_vram=1 << 35,
        gpus=(Gpu(name="RTX", total_vram=1 << 35, available_vram=1 << 34),), in_flight=3, capacity=8,
        services={"default": True, "chat": False}, addresses=("/ip4/192.0.2.1/tcp/4484",), announce_every_s=60,
        models=pack({"default": catalog("ollama", [Model("llama3:latest", True, 5 << 30), Model("qwen:7b")])}),
    )  # fmt: skip


def _frame(rng: random.Random) -> bytes:
    kind = rng.choice((*range(1, 14), 64, 255))
    channel = 0 if kind in (mux.PING, mux.PONG, mux.LOAD, mux.WATCH) else rng.choice((1, 1, 2, 2, 3, 4, 5, 6, 2**32 - 1))
    load = struct.pack(">I", rng.choice((0, 1, 3, 100, ANY_LOAD)))
    number = struct.pack(">I", rng.choice((0, 1, 4, 65536, ANY_LOAD)))
    payload = {
        mux.OPEN: rng.choice((b"", load)) + b"default", mux.LOAD: load,
        mux.WATCH: rng.choice((b"\x00", b"\x1e")), mux.BUSIER: load, mux.CREDIT: number, mux.PING: bytes(8),
        mux.PONG: bytes(8), mux.DATA: bytes(rng.choice((1, 10, 5000))), mux.RST: b"gone", mux.REFUSED: b"no",
    }.get(kind, b"")  # fmt: skip
    return mux.HEADER.pack(kind, channel, len(payload)) + payload


def _message(value: object) -> bytes:
    data: bytes = msgpack.packb(value)
    return struct.pack(">I", len(data)) + data


def well_formed(target: str, rng: random.Random) -> bytes:
    """A message as an honest sender would write it, more or less."""
    match target:
        case "token":
            owner = rng.choice([b"", rng.randbytes(32)])
            token = Token(rng.randbytes(32), "home", ("/ip4/192.0.2.1/tcp/4484",) * rng.randrange(3), owner=owner)
            return rng.choice([token, token.rotated(rng.randbytes(32))]).encode().encode()
        case "record":
            return encode(_full_record(rng))
        case "address":
            peer = rng.choice((b"", b"/p2p/12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"))
            host = rng.choice((b"/ip4/192.0.2.1", b"/ip6/2001:db8::1", b"/dns/box.example", b"[::1]:80"))
            return host if host.endswith(b"80") else host + b"/tcp/4484" + peer
        case "models":
            rows = [["m" * rng.randrange(9), rng.randrange(2), rng.randrange(2**33), rng.randrange(9)][: rng.randrange(5)]]
            return bytes(
                msgpack.packb([["default", "ollama", rng.randrange(600), rows * rng.randrange(9)]] * rng.randrange(3))
            )
        case "frames":
            return b"".join(_frame(rng) for _ in range(rng.randrange(1, 12)))
        case "http":
            path = b"/" + b"a" * rng.choice((0, 5, 60_000))
            return rng.choice((b"GET ", b"POST ", b"BREW ")) + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"
        case "head":
            of_clients = rng.choice(list(ATTACKS.values()))[1]
            of_backends = rng.choice([*(data for _, data in ANSWERS.values()), *BAD_ANSWERS.values()])
            return rng.choice((of_clients[:MAX_INPUT], of_backends, POST + TE + b"\r\n", GET + b"X: y\r\n\r\n"))
        case "framing":
            sound = b"".join(
                b"%x\r\n%b\r\n" % (n, bytes(n)) for n in (rng.randrange(1, 300) for _ in range(rng.randrange(4)))
            )
            return sound + rng.choice((b"0\r\n\r\n", b"0;x\r\nA: b\r\n\r\n", rng.choice(list(BAD_CHUNKS.values()))))
        case "browser":
            hosts = (b"localhost", b"127.0.0.1:8484", b"[::1]:1", b"evil.example", b"box.", b"x@chat.example")
            origins = (b"null", b"http://localhost:3000", b"https://chat.example", b"https://evil.example", b"tauri://x")
            lines = [b"Host: " + rng.choice(hosts), b"Origin: " + rng.choice(origins), b"Sec-Fetch-Site: cross-site",
                     b"Content-Length: 3", b"X: " + b"y" * rng.choice((1, 20_000))]  # fmt: skip
            first = rng.choice((b"GET / HTTP/1.1", b"OPTIONS * HTTP/1.0", b"brew http://evil.example/ HTTP/1.1"))
            return rng.choice((b"\r\n", b"\n")).join([first, *rng.sample(lines, rng.randrange(6)), b"", b"abc"])
        case "body":
            where = rng.choice(
                (b"/v1/chat/completions", b"/api/show", b"/v1/responses", b"/v1/v1/completions?model=m", b"/v1/x/s")
            )
            if rng.random() < 0.2:
                part = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
                return b"/v1/audio/transcriptions\n" + part * rng.randrange(4) + b"--b--\r\n"
            text = rng.choice(
                ("", "m", "\u00e9\U0001f600", "\ud800", '\\"{[', "cch=1;\n12:30", "x" * rng.choice((10, 40_000)))
            )
            content = rng.choice((text, [{"type": "text", "text": text}], None, [[[[text]]]] * rng.randrange(9)))
            said = [{"role": rng.choice(("system", "user", "tool")), "content": content}] * rng.randrange(4)
            members = [("model", "m"), ("Model", "m"), ("name", text), ("messages", said), ("system", content), ("n", 1e300),
                       ("tools", said), ("input", content), ("prompt", text), ("previous_response_id", "r")]  # fmt: skip
            chosen = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rng.sample(members, rng.randrange(8)))
            return where + b"\n{" + ",".join(chosen).encode() + b"}"
        case "identity":
            keys = create_new_key_pair(rng.randbytes(32))
            key = keys.public_key.serialize()
            rsa = b"\x08\x00\x12" + bytes([rng.randrange(128)]) + rng.randbytes(rng.randrange(128))
            said = identities.write_payload(keys, STATIC)
            return rng.choice((key, b"\x00\x24" + key, str(identities.peer_id(key[4:])).encode(), said, said, rsa))
        case "signed":
            message = TOPIC.sign(rng.randbytes(rng.randrange(40)))
            if rng.random() < 0.3:
                message.key = rng.randbytes(rng.randrange(200))
            rpc = rpc_pb2.RPC(publish=[message] * rng.randrange(3))
            return rng.choice((message, rpc)).SerializeToString()
        case "handshake":
            return struct.pack(">H", 32) + rng.randbytes(32)
        case "gossip":
            node = _full_record(rng)
            row = (sign(node.peer_id, encode(node)), rng.choice((0, 1000, 2**40)))
            return _message([["bob", 1, rng.randrange(3)]]) + _message([row]) + _message([])
    return rng.randbytes(rng.randrange(200))


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, put in, taken out, doubled, or exchanged for what another input has."""
    out = bytearray(data)
    for _ in range(1 << rng.randrange(5)):
        at = rng.randrange(len(out) + 1)
        n = rng.choice((1, 1, 2, 4, rng.randrange(64) + 1))
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[at:at] = rng.randbytes(n)
            case 2:
                del out[at : at + n]
            case 3:
                out[at : at + n] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"\n", b"\r\n", b" ")) * n
            case 4:
                start = rng.randrange(len(other) + 1)
                out[at : at + rng.choice((0, n))] = other[start : start + n * 8]
            case 5:
                out[at:at] = out[max(0, at - n) : at] * rng.choice((1, 2, 50))
            case 6:
                form, most = rng.choice(((">B", 255), (">H", 65535), (">I", 2**32 - 1), (">Q", 2**64 - 1)))
                out[at : at + struct.calcsize(form)] = struct.pack(form, rng.choice((0, 1, most // 2, most // 2 + 1, most)))
    return bytes(out[:MAX_INPUT])


# The run


class Crash(Exception):
    """An input that a target could not bear; str() says how to repeat it."""


def run_one(target: str, data: bytes) -> str:
    began = time.process_time()
    outcome = TARGETS[target](data)
    if (took_s := time.process_time() - began) > SLOW_S:
        raise AssertionError(f"{len(data)} bytes took {took_s:.1f} s")
    return outcome


class Fuzzer:
    """One target: its pool of inputs, and the outcomes that were seen."""

    def __init__(self, target: str, corpus: Path, rng: random.Random) -> None:
        self.target = target
        self.runs = 0
        self.outcomes: Counter[str] = Counter()
        self._corpus = corpus / target
        self._rng = rng
        self.pool = [path.read_bytes() for path in sorted(self._corpus.glob("*"))] or [b""]
        self.new: list[bytes] = []  # that went as none in the corpus

    def turn(self, seconds: float) -> None:
        """Raises Crash."""
        for data in self.pool if not self.runs else ():
            self._try(data)
        until = time.monotonic() + seconds
        rng = self._rng
        while time.monotonic() < until:
            base = well_formed(self.target, rng) if rng.random() < 0.3 else rng.choice(self.pool)
            data = base if rng.random() < 0.05 else mutate(base, rng.choice(self.pool), rng)
            if self._try(data):
                self.new.append(data)
                if len(self.pool) < POOL:
                    self.pool.append(data)
                else:
                    self.pool[rng.randrange(POOL)] = data

    def keep(self) -> int:
        """Write what was new into the corpus; how many that were."""
        free = KEPT - len(list(self._corpus.glob("seen-*")))
        small = [data for data in self.new if len(data) <= MAX_KEPT_BYTES]
        return sum(self._save("seen", data) is not None for data in small[: max(0, free)])

    def _save(self, kind: str, data: bytes) -> Path | None:
        path = self._corpus / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        if path.exists():
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def _try(self, data: bytes) -> bool:
        """Whether it went as none before."""
        self.runs += 1
        try:
            outcome = run_one(self.target, data)
        except Exception as error:  # anything at all is the point
            path = self._save("crash", data) or self._corpus
            raise Crash(f"{self.target} crashed; repeat it with\n    scripts/fuzz --repeat {path}") from error
        self.outcomes[outcome] += 1
        return self.outcomes[outcome] == 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=1.0, help="all targets together (default 1)")
    parser.add_argument("--seed", type=int, help="repeats a run, as far as time allows (default: another one each time)")
    parser.add_argument("--keep", action="store_true", help="write inputs that went as none before into the corpus")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="run this one input, of tests/corpus/TARGET/")
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if options.repeat is not None:
        if options.repeat.parent.name not in TARGETS or not options.repeat.is_file():
            parser.error("--repeat takes a file of tests/corpus/TARGET/")
        print(run_one(options.repeat.parent.name, options.repeat.read_bytes()))
        return 0
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))  # of a million inputs
    fuzzers = [Fuzzer(name, CORPUS, random.Random(f"{seed} {name}")) for name in options.targets or TARGETS]
    until = time.monotonic() + options.minutes * 60
    try:
        while time.monotonic() < until:
            for fuzzer in fuzzers:
                fuzzer.turn(TURN_S)
    except Crash as crash:
        traceback.print_exception(crash.__cause__)
        print(crash)
        return 1
    for fuzzer in fuzzers:
        kept = f", {fuzzer.keep()} kept" if options.keep else ""
        print(f"{fuzzer.target:10} {fuzzer.runs:9} inputs, {len(fuzzer.outcomes):4} different outcomes, no crash{kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
