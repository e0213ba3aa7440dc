"""One POST: what each kind of receiver gets, over real sockets and TLS; and what a bad one comes to."""

from __future__ import annotations

import base64
import json
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import h11
import pytest
import trio

from federation.ops.alerts import webhook
from federation.ops.alerts.webhook import Address, Message, NotDelivered, post, request
from federation.units import parse_webhook
from tests.support.certificates import self_signed, trusting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "t0psecret"
DIED = Message("lab: bérgen does not answer", "bergen: not heard of since 10:00:00 UTC.", True, {"network": "lab"})


def of(url: str) -> Address:
    return Address.of(parse_webhook(url))


def fields(url: str, message: Message = DIED) -> Any:
    return json.loads(request(of(url), message)[1])


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        (f"https://ntfy.sh/{SECRET}", "ntfy", "https://ntfy.sh/…"),
        (f"https://ntfy.box.lan:8443/{SECRET}", "ntfy", "https://ntfy.box.lan:8443/…"),
        (f"ntfy+http://192.0.2.1/{SECRET}", "ntfy", "http://192.0.2.1/…"),
        (f"https://hooks.slack.com/services/{SECRET}", "slack", "https://hooks.slack.com/…"),
        (f"https://discord.com/api/webhooks/1/{SECRET}", "discord", "https://discord.com/…"),
        (f"http://[::1]:99/x?token={SECRET}", "json", "http://[::1]:99/…"),
        (f"https://me:{SECRET}@box.lan", "json", "https://box.lan/…"),
    ],
)
def test_kinds_and_what_is_shown(url: str, kind: str, shown: str) -> None:
    address = of(url)
    assert (address.kind, address.shown) == (kind, shown)
    assert SECRET not in f"{address!r} {address} {address.shown}"


def test_ntfy_gets_a_text_and_headers() -> None:
    headers, body = request(of(f"https://ntfy.sh/{SECRET}"), DIED)
    told = dict(headers)
    assert body.decode() == DIED.text
    assert told["Priority"] == "4"
    assert base64.b64decode(told["Title"].removeprefix("=?UTF-8?B?").removesuffix("?=")).decode() == DIED.title
    assert dict(request(of("https://ntfy.sh/x"), Message("a", "b", False))[0])["Priority"] == "3"


def test_chats_get_their_own_fields_and_a_name_calls_nobody() -> None:
    message = Message("<!channel> & @everyone", "", True)
    assert fields("https://hooks.slack.com/services/x", message) == {"text": "&lt;!channel&gt; &amp; @everyone"}
    told = fields("https://discord.com/api/webhooks/1/x", message)
    assert told == {"content": message.title, "allowed_mentions": {"parse": []}}


def test_others_get_json_with_the_facts() -> None:
    told = fields("https://box.lan/hook")
    assert told["network"] == "lab"
    assert told["title"] == DIED.title
    assert told["text"] == f"{DIED.title}\n{DIED.text}"
    headers = dict(request(of("https://me:p%40ss@box.lan:444/hook?a=b"), DIED)[0])
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode() == "me:p@ss"
    assert headers["Host"] == "box.lan:444"


class Receiver:
    """Answers each connection with `answer`; has what came."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.came: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def serve(self, tls: ssl.SSLContext | None, stream: trio.abc.Stream) -> None:
        if tls is not None:
            stream = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            connection, target, body = h11.Connection(h11.SERVER), b"", b""
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Request):
                    target = event.target
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
            self.came.append((target, body))
            await stream.send_all(self.answer)
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def receiver(answer: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Receiver]:
    found = Receiver(answer)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, partial(found.serve, tls), 0, host=host)
        (listener,) = await nursery.start(serve)
        found.port = listener.socket.getsockname()[1]
        yield found
        nursery.cancel_scope.cancel()


async def test_it_is_delivered() -> None:
    async with receiver(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n") as there:
        await post(of(f"http://127.0.0.1:{there.port}/a?b={SECRET}"), DIED)
        ((target, body),) = there.came
        assert target == f"/a?b={SECRET}".encode()
        assert json.loads(body)["title"] == DIED.title


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 no\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered 302; give the address that it leads to"),
        (b"SSH-2.0-x\r\n\r\n", "does not answer in HTTP"),
        (b"", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "does not answer in HTTP"),
    ],
)
async def test_what_is_no_yes_is_no_delivery(answer: bytes, why: str) -> None:
    async with receiver(answer) as there:
        with pytest.raises(NotDelivered) as caught:
            await post(of(f"http://127.0.0.1:{there.port}/{SECRET}"), DIED)
    assert str(caught.value) == f"http://127.0.0.1:{there.port}/… {why}"


async def test_nobody_there() -> None:
    async with receiver(b"") as gone:
        port = gone.port
    with pytest.raises(NotDelivered, match=r"http://127\.0\.0\.1:\d+/… was not reached: Connection refused") as caught:
        await post(of(f"http://127.0.0.1:{port}/{SECRET}"), DIED)
    assert SECRET not in repr(caught.value)


async def test_one_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.2)

    async def never(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, never, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(NotDelivered, match=r"did not answer within 0\.2 s"):
            await post(of(f"http://127.0.0.1:{port}/"), DIED)
        nursery.cancel_scope.cancel()


async def test_certificates_and_names_are_verified(tmp_path: Any) -> None:
    pair = self_signed(tmp_path)
    trusted = trusting(pair.cert)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair.cert, pair.key)
    yes = b"HTTP/1.1 200 OK\r\n\r\n"
    async with receiver(yes, tls) as there, receiver(yes, tls, "127.0.0.2") as named_otherwise:
        address = of(f"https://127.0.0.1:{there.port}/{SECRET}")
        await post(address, DIED, tls=trusted)
        assert len(there.came) == 1
        with pytest.raises(NotDelivered, match="its certificate is not valid"):
            await post(address, DIED)  # by the system's authorities
        with pytest.raises(NotDelivered, match="its certificate is not valid"):
            await post(of(f"https://127.0.0.2:{named_otherwise.port}/"), DIED, tls=trusted)
        assert len(there.came) == 1
        assert named_otherwise.came == []
