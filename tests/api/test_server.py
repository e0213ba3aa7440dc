"""The control API over real sockets: what a stranger's web page, a careless client and the command line would send."""

from __future__ import annotations

import json
import logging
import signal
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from federation import unixsocket
from federation.api import access, diagnosis, door, proof, routes, server, static
from federation.cli import client
from federation.errors import FederationError, ListenFailed
from federation.reactor import listening
from federation.state import StateDir
from federation.units import HostPort
from tests.support.control import ANYWHERE, KEY, OWNER, FakeNode, ask, get_of, raw, serving

if TYPE_CHECKING:
    pass

# The owner


async def test_secrets_and_changes_are_for_the_owner() -> None:
    node = FakeNode()
    async with serving(node) as address:
        owned = [operation for operation in routes.routes if operation.owner]
        others = [*routes.routes, *diagnosis.routes, *access.routes(Any, Any)]
        assert {op.path for op in others if not op.owner and op.method != "GET"} == {access.SESSION}
        assert {"invite", "drain", "undrain", "leave"} <= {operation.name for operation in owned}
        for operation in owned:
            status, body, headers = await ask(address, operation.path, operation.method)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "control key" in body["error"]
        assert (node.draining, node.left) == (False, False)
        assert (await ask(address, "/api/v1/invite", headers=OWNER))[1]["token"] == "fed1_secret"


@pytest.mark.parametrize(
    "value", ["Bearer wrong", f"Basic {KEY}", KEY, "Bearer", "Bearer ", "", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"]
)
async def test_a_wrong_key_opens_nothing(value: str) -> None:
    async with serving(FakeNode()) as address:
        for path in ("/api/v1/status", "/api/v1/invite"):
            status, body, _ = await ask(address, path, headers={"Authorization": value})
            assert (status, body) == (401, {"error": server.WRONG_KEY})


async def test_two_keys_are_none() -> None:
    async with serving(FakeNode()) as address:
        twice = get_of(address, "/api/v1/invite").replace(
            b"\r\n\r\n", f"\r\nAuthorization: Bearer {KEY}".encode() * 2 + b"\r\n\r\n"
        )
        assert (await raw(address, twice)).split()[1] == b"401"


async def test_the_key_opens_no_door_to_strangers() -> None:
    async with serving(FakeNode()) as address:
        for stranger in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert (await ask(address, "/api/v1/invite", headers=OWNER | stranger))[0] == 403


async def test_what_is_not_there_is_json_too() -> None:
    async with serving(FakeNode()) as address:
        for path in ("/nothing", "/api/v1/nothing", "/api/v2/status"):
            assert (await ask(address, path))[:2] == (404, {"error": "Not Found"})
        assert (await ask(address, "/api/v1/status", "DELETE"))[0] == 405


async def test_our_bug_is_a_logged_500_and_the_next_request_is_served() -> None:
    node = FakeNode()
    node.fails = True
    with capture_logs() as logged:
        async with serving(node) as address:
            await _check_that_it_recovers(address)
    (entry,) = logged
    assert (entry["event"], entry["path"], entry["exc_info"]) == ("a control request failed", "/api/v1/status", True)


async def _check_that_it_recovers(address: HostPort) -> None:
    status, body, _ = await ask(address, "/api/v1/status")
    assert status == 500
    assert "a bug of ours" not in body["error"]
    assert (await ask(address, "/api/v1/peers"))[0] == 200


# Who may ask


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "LOCALHOST:{port}",
        "127.1.2.3:{port}",
        "[::1]:{port}",
        "127.0.0.1",
        "localhost:1",
    ],
)
async def test_loopback_hosts_are_served(host: str) -> None:
    async with serving(FakeNode()) as address:
        headers = {"Host": host.format(port=address.port)}
        assert (await ask(address, "/api/v1/status", headers=headers))[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:{port}",
        "192.0.2.7:{port}",
        "127.0.0.1.evil.example:{port}",
        "0.0.0.0:{port}",
        "",
        "x y",
        "localhost:{port}@evil",
    ],
)
async def test_other_hosts_are_not(host: str) -> None:
    async with serving(FakeNode()) as address:
        for path, method in (("/api/v1/status", "GET"), ("/api/v1/peers", "GET"), ("/nothing", "GET")):
            status, body, _ = await ask(address, path, method, {"Host": host.format(port=address.port)})
            assert status == 403
            assert "host name" in body["error"]


async def test_no_host_is_no_loopback_host() -> None:
    async with serving(FakeNode()) as address:
        answer = await raw(address, b"GET /api/v1/status HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403") or answer.startswith(b"HTTP/1.0 403")
        two = get_of(address, "/api/v1/status").replace(b"\r\n\r\n", b"\r\nHost: evil.example\r\n\r\n")
        assert (await raw(address, two)).split()[1] in (b"400", b"403")


@pytest.mark.parametrize("origin", ["http://127.0.0.1:{port}", "http://localhost:{port}"])
async def test_our_own_origin_is_served(origin: str) -> None:
    async with serving(FakeNode()) as address:
        headers = {"Origin": origin.format(port=address.port)}
        assert (await ask(address, "/api/v1/status", "GET", headers))[0] == 200


async def test_a_forwarded_port_is_served() -> None:
    """`ssh -L 9485:127.0.0.1:8485`: browser and command line name a port that is not ours. Pages of other ports stay out."""
    async with serving(FakeNode()) as address:
        for host in ("127.0.0.1:9485", "localhost:9485"):
            for origin, expected in ((f"http://{host}", 200), ("http://localhost:3000", 403), ("http://evil.example", 403)):
                headers = OWNER | {"Host": host, "Origin": origin}
                assert (await ask(address, "/api/v1/status", headers=headers))[0] == expected


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "",
        "file://",
    ],
)
async def test_other_origins_are_refused(origin: str) -> None:
    async with serving(FakeNode()) as address:
        for path, method in (("/api/v1/status", "GET"), ("/api/v1/peers", "GET")):
            status, body, _ = await ask(address, path, method, {"Origin": origin.format(port=address.port)})
            assert (status, body) == (403, {"error": "requests from another origin are refused"})


async def test_a_websocket_is_an_ordinary_request() -> None:
    async with serving(FakeNode()) as address:
        upgrade = (
            b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        request = f"GET /api/v1/status HTTP/1.1\r\nHost: {address}".encode() + upgrade
        assert (await raw(address, request)).startswith(b"HTTP/1.1 200")


# By the state directory's socket


async def test_by_the_socket_everything_is_the_owners(tmp_path: Path) -> None:
    node = FakeNode()
    state = StateDir(tmp_path)
    state.lock()
    async with trio.open_nursery() as nursery:
        app = server.create_app(node, KEY, remote=True)
        await nursery.start(partial(server.serve, app, ANYWHERE, own=state.listen_control))
        own = client.Daemon(state)
        for headers in ({}, {"method": "POST"}):
            with trio.fail_after(10):
                path = "/api/v1/drain" if headers else "/api/v1/invite"
                assert json.loads(await trio.to_thread.run_sync(partial(own.ask, path, owner=True, **headers)))  # type: ignore[arg-type]
        assert node.draining
        nursery.cancel_scope.cancel()
    state.unlock()


async def test_and_another_user_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDir(tmp_path)
    state.lock()
    async with trio.open_nursery() as nursery:
        app = server.create_app(FakeNode(), KEY)
        await nursery.start(partial(server.serve, app, ANYWHERE, own=state.listen_control))
        with monkeypatch.context() as patches, trio.fail_after(10):
            patches.setattr(unixsocket, "peer_uid", lambda _: 54321)
            async with await trio.open_unix_socket(tmp_path / "control.sock") as stream:
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()
    state.unlock()


async def test_a_mark_cannot_be_sent(tmp_path: Path) -> None:
    async with serving(FakeNode()) as address:
        assert (await ask(address, "/api/v1/invite", headers={server.OWN_SOCKET: "1"}))[0] == 401


# With a proof of the key


async def proven(address: HostPort, path: str, **how: Any) -> Any:
    daemon = client.Daemon(StateDir(Path("none")), address, KEY)
    return json.loads(await trio.to_thread.run_sync(partial(daemon.ask, path, owner=True, **how)))


@pytest.mark.parametrize("remote", [False, True])
async def test_a_proof_is_as_good_as_the_key(remote: bool) -> None:
    node = FakeNode()
    async with serving(node, remote=remote) as address:
        assert (await proven(address, "/api/v1/invite"))["token"] == "fed1_secret"
        assert (await proven(address, "/api/v1/drain", method="POST"))["draining"] is True
        assert (await proven(address, "/api/v1/explain?last=3"))["decisions"]
        rotated = await proven(address, "/api/v1/token/rotate", method="POST", body={"grace_s": 1, "except": ["x"]})
        assert rotated["left_out"] == ["x"]
        with pytest.raises(FederationError, match=r"^last: "):
            await proven(address, "/api/v1/explain?last=0")
        node.fails = True
        with capture_logs(), pytest.raises(FederationError, match=r"^internal error"):
            await proven(address, "/api/v1/status")


async def test_a_proof_is_for_one_request(tmp_path: Path) -> None:
    async with serving(FakeNode()) as address:
        host, nonce = str(address), proof.new_nonce()
        answer = (await ask(address, f"{access.CHALLENGE}?nonce={nonce}"))[1]
        nonces = proof.Nonces(nonce, answer["nonce"])
        assert answer["proof"] == proof.of_daemon(KEY, nonces, host)
        mac = proof.of_request(KEY, nonces, host, "GET", "/api/v1/status", b"")
        shown = {"Authorization": f"{proof.SCHEME} {nonce} {answer['nonce']} {mac}"}
        for path, method in (("/api/v1/invite", "GET"), ("/api/v1/status", "POST"), ("/api/v1/status?x", "GET")):
            assert (await ask(address, path, method, shown))[:2] == (401, {"error": server.WRONG_PROOF})
        status, _, headers = await ask(address, "/api/v1/status", headers=shown)
        assert (status, len(headers[proof.ANSWER_HEADER])) == (200, 64)
        assert (await ask(address, "/api/v1/status", headers=shown))[0] == 401
        for garbage in ("", "a", "a b c", f"{nonce} {answer['nonce']} {'0' * 64}"):
            assert (await ask(address, "/api/v1/status", headers={"Authorization": f"{proof.SCHEME} {garbage}"}))[0] == 401
        assert (await ask(address, f"{access.CHALLENGE}?nonce=short"))[0] == 400


async def test_a_stream_without_an_end_is_not_signed() -> None:
    async with serving(FakeNode()) as address:
        with pytest.raises(FederationError, match="cannot be signed"):
            await proven(address, "/api/v1/events")


@pytest.mark.parametrize(
    "authorization", ["", "\r\nAuthorization: Federation-MAC a b c", f"\r\nAuthorization: Bearer {KEY}"]
)
async def test_who_goes_away_in_the_middle_of_a_body_leaves_no_line(authorization: str) -> None:
    with capture_logs() as logged:
        async with serving(FakeNode()) as address:
            for path in (access.SESSION, "/api/v1/ban"):
                head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9{authorization}\r\n\r\n{{"
                stream = await trio.open_tcp_stream(address.host, address.port)
                await stream.send_all(head.encode())
                await stream.send_eof()
                with suppress(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
                await stream.aclose()
    assert [str(entry) for entry in logged] == [], logged


# The dashboard's sessions


async def open_session(address: HostPort, code: str) -> tuple[int, Any]:
    body = json.dumps({"code": code})
    head = f"POST {access.SESSION} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {len(body)}"
    answer = await raw(address, f"{head}\r\n\r\n{body}".encode())
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("remote", [False, True])
async def test_a_code_becomes_a_session_once(remote: bool) -> None:
    node = FakeNode()
    async with serving(node, remote=remote) as address:
        code = (await ask(address, "/api/v1/dashboard/code", "POST", OWNER))[1]["code"]
        assert (await ask(address, "/api/v1/status", headers={"Authorization": f"Bearer {code}"}))[0] == 401
        status, answer = await open_session(address, code)
        assert status == 200
        page = {"Authorization": f"Bearer {answer['session']}"}
        assert (await ask(address, "/api/v1/invite", headers=page))[0] == 200
        assert (await ask(address, "/api/v1/drain", "POST", page))[0] == 200
        assert await open_session(address, code) == (403, {"error": access.SPENT})
        assert (await open_session(address, KEY))[0] == 403
        assert (await ask(address, "/api/v1/dashboard/revoke", "POST", OWNER))[1] == {"sessions": 1}
        assert (await ask(address, "/api/v1/invite", headers=page))[0] == 401
        assert (await ask(address, "/api/v1/dashboard/code", "POST"))[0] == 401


async def test_revoking_ends_a_page_that_listens() -> None:
    async with serving(FakeNode()) as address:
        code = (await ask(address, "/api/v1/dashboard/code", "POST", OWNER))[1]["code"]
        session = (await open_session(address, code))[1]["session"]
        stream = await trio.open_tcp_stream(address.host, address.port)
        async with stream:
            await stream.send_all(
                get_of(address, "/api/v1/events").replace(
                    b"\r\n\r\n", f"\r\nAuthorization: Bearer {session}\r\n\r\n".encode()
                )
            )
            seen = b""
            while b"event: state" not in seen:
                seen += await stream.receive_some()
            assert (await ask(address, "/api/v1/dashboard/revoke", "POST", OWNER))[1] == {"sessions": 1}
            while seen:
                seen = await stream.receive_some()  # to its end


# What browsers say of who asks


@pytest.mark.parametrize("site", ["cross-site", "same-site", "strange"])
async def test_on_behalf_of_another_site_nothing_is_served(site: str) -> None:
    async with serving(FakeNode()) as address:
        foreign = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        visit = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        for path in ("/", "/static/icon.svg", "/api/v1/status", "/metrics"):
            assert (await ask(address, path, headers=foreign))[0] == 403
        framed = visit | {"Sec-Fetch-Dest": "iframe"}
        for path, headers in (("/static/icon.svg", visit), ("/api/v1/status", visit), ("/", framed)):
            assert (await ask(address, path, headers=headers))[0] == 403
        get = get_of(address, "/").replace(
            b"\r\n\r\n", "".join(f"\r\n{k}: {v}" for k, v in visit.items()).encode() + b"\r\n\r\n"
        )
        assert (await raw(address, get)).split()[1] == b"200"  # a link that somebody follows


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_for_nobody_or_our_own_page_all_is(site: str) -> None:
    async with serving(FakeNode()) as address:
        for path in ("/api/v1/status", "/api/v1/peers"):
            assert (await ask(address, path, headers={"Sec-Fetch-Site": site}))[0] == 200


async def test_no_answer_may_be_loaded_into_another_page() -> None:
    async with serving(FakeNode()) as address:
        for path in ("/", "/static/icon.svg", "/api/v1/status", "/metrics", "/nothing", "/api/v1/invite"):
            head = (await raw(address, get_of(address, path))).partition(b"\r\n\r\n")[0].lower()
            assert head.count(b"cross-origin-resource-policy: same-origin") == 1, path


# Nonsense on the wire


async def test_nonsense_leaves_the_server_unharmed(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(FakeNode()) as address:
        for garbage in (b"\x00" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"A" * 100_000 + b"\r\n"):
            with trio.move_on_after(5):
                with suppress(trio.BrokenResourceError):  # it may hang up while we still talk
                    await raw(address, garbage)
        silent = await trio.open_tcp_stream(address.host, address.port)
        assert (await ask(address, "/api/v1/status"))[0] == 200
        await silent.aclose()
    assert not caplog.records


# Life


async def test_port_0_is_a_free_port() -> None:
    async with serving(FakeNode()) as first, serving(FakeNode()) as second:
        assert first.host == second.host == "127.0.0.1"
        assert 0 < first.port != second.port > 0


async def test_ipv6_loopback() -> None:
    async with serving(FakeNode(), HostPort("::1", 0)) as address:
        assert (await ask(address, "/api/v1/status"))[0] == 200


async def test_a_port_in_use_is_plain_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = HostPort("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenFailed, match=rf"control API on {address}: the port is in use.*--control"):
            await server.serve(server.create_app(FakeNode(), KEY), address)


# From other machines: `remote` is what makes the difference, the tests stay on loopback


REMOTE = {"remote": True, "hosts": ("gpu-box.lan",)}


async def test_from_elsewhere_every_request_takes_the_key() -> None:
    async with serving(FakeNode(), **REMOTE) as address:
        for path in ("/api/v1/status", "/api/v1/openapi.json", "/metrics", "/api/p2p", "/nothing"):
            status, body, headers = await ask(address, path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "control key" in body["error"]
            assert (await ask(address, path, headers={"Authorization": "Bearer wrong"}))[0] == 401
        assert (await ask(address, "/api/v1/status", headers=OWNER))[0] == 200


async def test_but_the_page_which_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    monkeypatch.setattr(static.routes, "__defaults__", (tmp_path,))
    async with serving(FakeNode(), **REMOTE) as address:
        answer = await raw(address, get_of(address, "/"))
        assert answer.split()[1] == b"200"
        assert answer.endswith(b"<!doctype html>")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:{port}",
        "192.0.2.7:{port}",
        "192.0.2.7:80",
        "192.0.2.7",
        "[2001:db8::1]:1",
        "gpu-box.lan:{port}",
        "GPU-BOX.lan.",
    ],
)
async def test_from_elsewhere_by_address_or_an_allowed_name(host: str) -> None:
    async with serving(FakeNode(), **REMOTE) as address:
        headers = {"Host": host.format(port=address.port)}
        for origin in ("http", "https"):
            own = headers | {"Origin": f"{origin}://{headers['Host']}"}
            assert (await ask(address, "/api/v1/status", headers=OWNER | own))[0] == 200
        other = headers | {"Origin": "http://evil.example"}
        assert (await ask(address, "/api/v1/status", headers=OWNER | other))[0] == 403


@pytest.mark.parametrize("host", ["evil.example:{port}", "gpu-box.lan.evil.example", "0.0.0.0:{port}", "", "x y"])
async def test_from_elsewhere_no_other_name(host: str) -> None:
    async with serving(FakeNode(), **REMOTE) as address:
        headers = {"Host": host.format(port=address.port)}
        status, body, _ = await ask(address, "/api/v1/status", headers=OWNER | headers)
        assert status == 403
        assert "--control-host" in body["error"]


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", True), ("0.0.0.0", False), ("gpu-box.lan", False)])
async def test_where_it_listens_decides(host: str, is_open: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "listen", lambda *_: [socket.create_server(("127.0.0.1", 0))])
    with capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            bound: HostPort = await nursery.start(door.serve_node, FakeNode(), HostPort(host, 0))
            assert bound.host == host
            address = HostPort("127.0.0.1", bound.port)
            assert (await ask(address, "/api/v1/status"))[0] == (200 if is_open else 401)
            named = {"Host": "other.lan"}  # which the node allows
            assert (await ask(address, "/api/v1/status", headers=OWNER | named))[0] == 200
            for other in ({"Host": "evil.example"}, named | {"Origin": "http://evil.example"}):
                assert (await ask(address, "/api/v1/status", headers=OWNER | other))[0] == 403
            nursery.cancel_scope.cancel()
    assert [entry["log_level"] for entry in logged] == ([] if is_open else ["warning"])


async def test_it_ends_when_cancelled_and_leaves_nothing() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            address: HostPort = await nursery.start(server.serve, server.create_app(FakeNode(), KEY), ANYWHERE)
            idle = await trio.open_tcp_stream(address.host, address.port)
            half = await trio.open_tcp_stream(address.host, address.port)
            await half.send_all(b"GET /api/v1/status HTTP/1.1\r\nHo")
            assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - stopped_at < 1
        for stream in (idle, half):
            with suppress(trio.BrokenResourceError):  # reset, where our bytes were not read
                assert await stream.receive_some() == b""
            await stream.aclose()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(address.host, address.port)
    # The address is free at once: a restart need not wait.
    async with serving(FakeNode(), address) as again:
        assert again == address


async def test_nothing_is_logged_about_requests(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO)
    async with serving(FakeNode()) as address:
        await ask(address, "/api/v1/status")
        await ask(address, "/api/v1/invite", "POST")
    assert not [record for record in caplog.records if "/api" in record.getMessage()]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
