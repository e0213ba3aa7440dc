from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.forward.http.framing import CHUNKED
from federation.forward.http.head import HeadBuffer, RequestHead, ResponseHead, parse_request, parse_response
from federation.forward.http.rewrite import (
    MAX_FORWARDED,
    backend_head,
    client_head,
    is_for_client,
    is_unchunked,
    may_keep_alive,
)
from tests.support.smuggling import ANSWERS, GET, POST


def request(*lines: str, line: str = "POST /v1/chat/completions HTTP/1.1") -> RequestHead:
    return parse_request("\r\n".join([line, *lines, "", ""]).encode("latin-1"))


def answer(*lines: str, line: str = "HTTP/1.1 200 OK", to: RequestHead | None = None) -> ResponseHead:
    return parse_response("\r\n".join([line, *lines, "", ""]).encode("latin-1"), to or request("Host: box"))


def lines_of(head: bytes) -> list[str]:
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].decode("latin-1").split("\r\n")


PLAIN = request("Host: box")
OLD = request(line="GET / HTTP/1.0")


# To the backend


def test_the_table_of_the_docstring() -> None:
    came = request(
        "host: box:8484", "Connection: close, X-Hop", "X-Hop: 1", "Expect: 100-continue", "Content-Length: 4",
        "X-Forwarded-For: 10.0.0.9",
    )  # fmt: skip
    assert lines_of(backend_head(came, "192.0.2.7")) == [
        "POST /v1/chat/completions HTTP/1.1",
        "host: box:8484",
        "Content-Length: 4",
        "X-Forwarded-For: 10.0.0.9, 192.0.2.7",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: box:8484",
        "Connection: keep-alive",
    ]


def test_what_is_the_connections_own_goes_no_further() -> None:
    own = (
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic x",
        "TE: trailers",
        "HTTP2-Settings: AAM",
    )
    came = request(
        "Host: box", *own, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings, x-a, X-B", "X-A: 1", "x-b: 2", "X-C: 3"
    )
    assert lines_of(backend_head(came, "::1"))[1:-4] == ["Host: box", "X-C: 3"]


def test_connection_cannot_take_away_what_a_backend_has_to_know() -> None:
    kept = ("Host: box", "Authorization: Bearer x", "X-Api-Key: y", "Api-Key: z", "Content-Type: application/json")
    named = "Connection: host, authorization, x-api-key, api-key, content-type, content-length, x-forwarded-for"
    head = lines_of(backend_head(request(*kept, named, "X-Forwarded-For: 10.0.0.9"), "::1"))
    assert head[1:6] == list(kept)
    assert "X-Forwarded-For: 10.0.0.9, ::1" in head


def test_everything_else_keeps_order_case_and_value() -> None:
    others = (
        "user-AGENT: x  y",
        "Cookie: a=b",
        "Accept: */*",
        "accept: text/html",
        "X-Empty: ",
        "X-\xe9: y"[:2] + "Name: caf\xe9",
    )
    head = lines_of(backend_head(request("Host: box", *others), "::1"))
    assert head[2 : 2 + len(others)] == list(others)


def test_the_framing_is_the_entrys() -> None:
    assert "transfer-encoding: chunked" in lines_of(backend_head(request("Host: box", "transfer-encoding: CHUNKED"), "::1"))
    assert not any("ength" in line or "ncoding" in line for line in lines_of(backend_head(PLAIN, "::1")))


def test_connection_is_the_entrys() -> None:
    assert lines_of(backend_head(request("Host: box", "Connection: close"), "::1"))[-1] == "Connection: keep-alive"
    assert lines_of(backend_head(PLAIN, "::1", keep_alive=False))[-1] == "Connection: close"
    assert lines_of(backend_head(OLD, "::1"))[-1] == "Connection: close"
    assert lines_of(backend_head(OLD, "::1"))[0] == "GET / HTTP/1.0"
    asked = request(
        "Host: box", "Upgrade: WebSocket", "Connection: keep-alive, Upgrade", line="GET /v1/realtime?model=x HTTP/1.1"
    )
    assert lines_of(backend_head(asked, "::1"))[-2:] == ["Connection: Upgrade", "Upgrade: websocket"]


def test_what_a_proxy_before_us_said_stays() -> None:
    head = lines_of(backend_head(request("Host: box", "X-Forwarded-Proto: https", "X-Forwarded-Host: chat.example"), "::1"))
    assert [line for line in head if "-Proto" in line or "-Host" in line] == [
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: chat.example",
    ]
    assert "X-Forwarded-Proto: https" in lines_of(backend_head(PLAIN, "::1", is_tls=True))
    assert not any("-Host" in line for line in lines_of(backend_head(OLD, "::1")))


def test_the_chain_of_addresses_is_bounded() -> None:
    long = request("Host: box", *(f"X-Forwarded-For: 10.0.{i}.1, 10.0.{i}.2" for i in range(90)))
    (line,) = [line for line in lines_of(backend_head(long, "192.0.2.7")) if "-For:" in line]
    chain = line.removeprefix("X-Forwarded-For: ")
    assert len(chain) <= MAX_FORWARDED
    assert chain.endswith("10.0.89.1, 10.0.89.2, 192.0.2.7")
    assert chain.startswith("10.0.")  # a whole address
    one = request("Host: box", "X-Forwarded-For: " + "1" * 3000)
    assert "X-Forwarded-For: 192.0.2.7" in lines_of(backend_head(one, "192.0.2.7"))


def test_the_key_stays_here_and_lines_are_added() -> None:
    came = request("Host: box", "Authorization: Bearer fedkey", "X-Api-Key: a")
    head = lines_of(backend_head(came, "::1", without=frozenset({b"authorization"}), more=b"X-More: 1\r\n"))
    assert not any("fedkey" in line for line in head)
    assert "X-Api-Key: a" in head
    assert head[-1] == "X-More: 1"


# To the client


def test_an_answer_to_the_client() -> None:
    head = answer(
        "date: Sat", "Server: uvicorn", "Keep-Alive: timeout=5", "Connection: close, X-Hop", "X-Hop: 1", "Set-Cookie: a",
        "Set-Cookie: b", "X-Federation-Node: evil", "transfer-encoding: chunked",
    )  # fmt: skip
    assert lines_of(client_head(head, PLAIN, "bergen", keep_alive=True, more=b"X-More: 1\r\n")) == [
        "HTTP/1.1 200 OK",
        "date: Sat",
        "Server: uvicorn",
        "Set-Cookie: a",
        "Set-Cookie: b",
        "transfer-encoding: chunked",
        "X-Federation-Node: bergen",
        "Connection: keep-alive",
        "X-More: 1",
    ]


def test_a_length_is_written_once() -> None:
    for lines in (["Content-Length: 2", "content-length: 2"], ["Content-Length: 2, 2"]):
        head = lines_of(client_head(answer(*lines), PLAIN, "bergen", keep_alive=True))
        assert [line for line in head if "ength" in line] == ["Content-Length: 2"]


def test_answers_without_a_body() -> None:
    asked = request("Host: box", line="HEAD / HTTP/1.1")
    assert "Content-Length: 17" in lines_of(client_head(answer("Content-Length: 17", to=asked), asked, "b", keep_alive=True))
    head = lines_of(client_head(answer("Content-Length: 5", line="HTTP/1.1 204 No Content"), PLAIN, "b", keep_alive=True))
    assert not any("ength" in line for line in head)
    head = lines_of(client_head(answer("Content-Length: 5", line="HTTP/1.1 304 Not Modified"), PLAIN, "b", keep_alive=True))
    assert "Content-Length: 5" in head


def test_interim_answers() -> None:
    hints = answer("Link: </x>", "Connection: close", line="HTTP/1.1 103 Early Hints")
    assert lines_of(client_head(hints, PLAIN, "b", keep_alive=True)) == ["HTTP/1.1 103 Early Hints", "Link: </x>"]
    assert is_for_client(hints, PLAIN)
    assert not is_for_client(hints, OLD)
    assert not is_for_client(answer(line="HTTP/1.1 100 Continue"), PLAIN)
    assert is_for_client(answer(), OLD)


def test_an_upgrade_is_answered() -> None:
    asked = request("Host: box", "Upgrade: websocket", "Connection: Upgrade", line="GET / HTTP/1.1")
    head = answer(
        "upgrade: websocket",
        "connection: upgrade",
        "Sec-WebSocket-Accept: x",
        line="HTTP/1.1 101 Switching Protocols",
        to=asked,
    )
    assert lines_of(client_head(head, asked, "bergen", keep_alive=False)) == [
        "HTTP/1.1 101 Switching Protocols",
        "Sec-WebSocket-Accept: x",
        "X-Federation-Node: bergen",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ]


def test_a_client_of_http_1_0_gets_no_chunks() -> None:
    head = answer("Transfer-Encoding: chunked", to=OLD)
    kept = request("Connection: keep-alive", line="GET / HTTP/1.0")
    assert head.framing is CHUNKED
    assert is_unchunked(head, OLD)
    assert not is_unchunked(head, PLAIN)
    assert not may_keep_alive(head, kept)
    assert may_keep_alive(answer("Content-Length: 2"), kept)
    assert not any("ncoding" in line for line in lines_of(client_head(head, kept, "b", keep_alive=False)))


def test_who_may_be_kept_alive() -> None:
    assert may_keep_alive(answer("Transfer-Encoding: chunked"), PLAIN)
    assert may_keep_alive(answer("Content-Length: 2", "Connection: close"), PLAIN)  # the backend's connection is another one
    assert not may_keep_alive(answer(), PLAIN)  # until the backend closes
    assert not may_keep_alive(answer("Content-Length: 2"), request("Host: box", "Connection: close"))


def test_the_name_of_a_node_ends_no_line() -> None:
    for name in ("a\r\nSet-Cookie: x", "b\xfcro", "a\x00"):
        head = client_head(answer("Content-Length: 2"), PLAIN, name, keep_alive=True)
        assert len(lines_of(head)) == 4
        assert head.isascii()


@pytest.mark.parametrize("name", ANSWERS)
def test_clients_read_what_real_backends_answered(name: str) -> None:
    method, data = ANSWERS[name]
    asked = request("Host: box", line=f"{method} / HTTP/1.1")
    _, raw = HeadBuffer(is_answer=True).feed(data)
    assert raw is not None
    found = parse_response(raw, asked)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "box")]))
    client.send(h11.EndOfMessage())
    client.receive_data(client_head(found, asked, "bergen", keep_alive=may_keep_alive(found, asked)))
    event = client.next_event()
    assert isinstance(event, h11.InformationalResponse | h11.Response)
    assert event.status_code == found.status


names = st.sampled_from(
    [
        "X",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "X-Forwarded-For",
        "Cookie",
        "X-Forwarded-Proto",
        "Via",
    ]
)
values = st.from_regex(r"(?:[!-~](?:[\t -~]{0,20}[!-~])?)?", fullmatch=True)


@given(
    st.lists(st.tuples(names, values), max_size=12),
    st.sampled_from(["Content-Length: 5", "Transfer-Encoding: chunked", "Y: z"]),
)
def test_a_rewritten_request_is_sound_and_framed_as_before(fields: list[tuple[str, str]], framing: str) -> None:
    came_lines = ["Host: box", *(f"{name}: {value}" for name, value in fields if name != "Expect"), framing]
    came = request(*came_lines)
    sent = parse_request(backend_head(came, "::1"))
    assert (sent.method, sent.target, sent.framing, sent.get(b"host")) == (came.method, came.target, came.framing, b"box")
    assert backend_head(sent, "::1").startswith(b"POST")
    assert {name for name, *_ in sent.fields} <= {name for name, *_ in came.fields} | {
        b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"connection"
    }  # fmt: skip


def test_heads_of_the_corpus_are_not_what_they_were_parsed_from() -> None:
    """Nothing of a client's Connection survives by accident."""
    for raw in (GET + b"Connection: x-a\r\nX-A: y\r\n\r\n", POST + b"connection:\tX-A \r\nx-a: y\r\n\r\n"):
        assert b"y" not in backend_head(parse_request(raw), "::1").split(b"\r\n", 1)[1].replace(b"Proxy", b"")
