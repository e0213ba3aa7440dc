from __future__ import annotations

import io
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from federation.errors import NotDone, UsageError
from federation.program import fetching
from federation.program.fetching import Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/base/away":
            self.send_response(302)
            self.send_header("Location", "/base/SHA256SUMS")
            self.end_headers()
        elif self.path == "/base/SHA256SUMS":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
        elif self.path == "/base/cut":
            self.send_response(200)
            self.send_header("Content-Length", "500000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            self.send_error(500 if self.path == "/base/broken" else 404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/base"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text("hello")
    source = Source(str(tmp_path))
    assert source.is_authentic
    assert source.read("SHA256SUMS", 10) == b"hello"
    assert source.read("other", 10) is None
    to = io.BytesIO()
    source.copy("SHA256SUMS", to)
    assert to.getvalue() == b"hello"
    with pytest.raises(NotDone, match=r"cannot get other from .*: No such file"):
        source.copy("other", to)


def test_an_address(base: str) -> None:
    source = Source(f"{base}/")
    assert source.text == base
    assert not source.is_authentic
    assert source.read("SHA256SUMS", 5) == source.read("away", 5) == b"hello"
    assert source.read("other", 5) is None
    with pytest.raises(NotDone, match="more than 4 bytes"):
        source.read("SHA256SUMS", 4)
    with pytest.raises(NotDone, match="cannot get broken from"):
        source.read("broken", 5)


def test_one_that_is_cut_off_says_so_or_is_short(base: str) -> None:
    to = io.BytesIO()
    try:
        Source(base).copy("cut", to)
    except NotDone as error:
        assert "cannot get cut" in str(error)
    assert len(to.getvalue()) <= 1000  # and then its hash is wrong


def test_one_without_an_end_has_one(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MAX_ARCHIVE_BYTES", 4)
    with pytest.raises(NotDone, match="has more than"):
        Source(base).copy("SHA256SUMS", io.BytesIO())


def test_nobody_there() -> None:
    with pytest.raises(NotDone, match=r"cannot get SHA256SUMS from http://127.0.0.1:1: Connection refused"):
        Source("http://127.0.0.1:1").read("SHA256SUMS", 10)


@pytest.mark.parametrize("text", ["ftp://example.net/x", "http://", "https://example.net/x?y=1", "https://example.net/#x"])
def test_what_is_no_source(text: str) -> None:
    with pytest.raises(UsageError):
        Source(text)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        Source("https://ann:t0psecret@host/releases")
    assert "t0psecret" not in str(caught.value)


def test_https_counts_as_authentic_and_leads_nowhere_without_tls() -> None:
    assert Source("https://example.net/x").is_authentic
    handler = fetching._NoWayDown()
    request = fetching.urllib.request.Request("https://example.net/a")
    with pytest.raises(fetching.urllib.error.URLError, match="without TLS"):
        handler.redirect_request(request, io.BytesIO(), 302, "", fetching.http.client.HTTPMessage(), "http://example.net/a")


def test_tls_is_checked_but_where_something_else_vouches() -> None:
    assert fetching._context().verify_mode == ssl.CERT_REQUIRED
    assert fetching.untrusting_context().verify_mode == ssl.CERT_NONE
