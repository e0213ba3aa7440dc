"""Pages of other sites in a real Chromium, before a real daemon whose backend lets any page ask and read, as llama.cpp does.

They are on this machine too, so that Chromium's own guard, which asks before a public page reaches a private address, has
no say: what keeps them out is the entry.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from harness import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet
    from harness import Daemon, Server
    from playwright.sync_api import Browser, Page

ASK = """async ([url, how]) => {
    try { const answer = await fetch(url, how); return `${answer.status} ${await answer.text()}`; }
    catch (error) { return `failed: ${error}`; }
}"""
SIMPLE = {"method": "POST", "body": "{}", "headers": {"Content-Type": "text/plain"}}
WITH_PREFLIGHT = {"method": "POST", "body": "{}", "headers": {"Content-Type": "application/json"}}


@pytest.fixture(scope="module")
def web_server() -> Iterator[int]:
    """Serves an empty page under any name; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>page</title>")

        def log_message(self, *_args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def backend(fleet: Fleet) -> Server:
    return fleet.backend("cors", "llama")


@pytest.fixture(scope="module")
def entry(fleet: Fleet, backend: Server, web_server: int) -> Daemon:
    entry = fleet.daemon(  # layer 4: a backend without tcp:// would be HTTP from its first answer on
        "entry",
        "--hold=0",
        f"--allow-origin=http://chat.example:{web_server}",
        "--backend=tcp://{}:{}".format(*backend.address),
        services=("default", "none"),
    )
    wait_until(lambda: entry.offers() == {"entry"}, within=10, what="its backend is up")
    return entry


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def url(entry: Daemon, service: str = "default") -> str:
    return "http://{}:{}/v1/chat".format(*entry.entry(service))


def asked(backend: Server, before: list[str]) -> list[str]:
    """What came since, but for the icon that Chromium asks for by itself, sooner or later, for each page that it shows."""
    return [what for what in backend.seen()[len(before) :] if "/favicon.ico" not in what]


@pytest.mark.parametrize("how", [SIMPLE, WITH_PREFLIGHT], ids=["simple", "preflight"])
def test_a_page_of_another_site(page: Page, entry: Daemon, backend: Server, web_server: int, how: object) -> None:
    before = backend.seen()
    page.goto(f"http://evil.example:{web_server}/")
    assert page.evaluate(ASK, [url(entry), how]).startswith("failed:")
    assert page.evaluate(ASK, [url(entry), {"mode": "no-cors"}]).startswith("0 ")  # as an image: neither read
    page.goto(url(entry))  # a script of that page could not do this: here it is the address bar, and served
    assert [what.split(" origin")[0] for what in asked(backend, before)] == ["GET /v1/chat"]


def test_a_link_and_a_form_of_another_site(page: Page, entry: Daemon, backend: Server, web_server: int) -> None:
    before = backend.seen()
    for element in ("a", "form"):
        page.goto(f"http://evil.example:{web_server}/")
        attributes = {"a": "href", "form": "method='post' action"}[element]
        page.set_content(f"<{element} {attributes}='{url(entry)}'><button>x</button></{element}>")
        with page.expect_navigation() as navigation:
            page.click("button" if element == "form" else "a")
        assert navigation.value.status == 403
    assert asked(backend, before) == []


def test_a_name_that_was_made_to_lead_here(page: Page, entry: Daemon, backend: Server) -> None:
    before = backend.seen()
    answer = page.goto(url(entry).replace("127.0.0.1", "rebind.example"))
    assert answer is not None
    assert answer.status == 403
    assert "is not served under the name rebind.example" in answer.text()
    assert backend.seen() == before


@pytest.mark.parametrize("how", [SIMPLE, WITH_PREFLIGHT], ids=["simple", "preflight"])
@pytest.mark.parametrize("host", ["chat.example", "127.0.0.1"], ids=["allowed", "of this machine"])
def test_a_page_that_may_ask(page: Page, entry: Daemon, web_server: int, host: str, how: object) -> None:
    page.goto(f"http://{host}:{web_server}/")
    assert page.evaluate(ASK, [url(entry), how]) == "200 llama"
    # Nobody to serve it: status and Retry-After are read.
    read = "async ([url, how]) => { const a = await fetch(url, how); return [a.status, a.headers.get('Retry-After')]; }"
    assert page.evaluate(read, [url(entry, "none"), how]) == [503, "5"]


def test_the_backends_own_page(page: Page, entry: Daemon) -> None:
    page.goto(url(entry))
    assert page.evaluate(ASK, ["/v1/models", {}]) == "200 llama"


def test_a_form_on_a_connection_that_the_users_page_opened(
    page: Page, entry: Daemon, backend: Server, web_server: int
) -> None:
    """Chromium sends it on the connection of the page that it leads to, behind requests that were allowed."""
    page.goto(url(entry))
    assert page.evaluate(ASK, ["/v1/models", {}]) == "200 llama"
    connection = backend.seen()[-1].rpartition("client=")[2]
    before = backend.seen()
    page.goto(f"http://evil.example:{web_server}/")
    page.set_content(f"<form method='post' action='{url(entry)}'><button>x</button></form>")
    with page.expect_navigation() as navigation:
        page.click("button")
    assert navigation.value.status == 403
    assert not [what for what in backend.seen()[len(before) :] if what.startswith("POST")]
    page.goto(url(entry))  # the user's own are served as before
    assert page.evaluate(ASK, ["/v1/models", SIMPLE]) == "200 llama"
    assert backend.seen()[-1].rpartition("client=")[2] != connection


def test_pages_of_two_sites_at_a_time(browser: Browser, entry: Daemon, backend: Server, web_server: int) -> None:
    """Scripts of one site's pages do not share connections with another's; an allowed page's requests share one."""
    context = browser.new_context()
    good, evil = context.new_page(), context.new_page()
    good.goto(f"http://chat.example:{web_server}/")
    evil.goto(f"http://evil.example:{web_server}/")
    before = backend.seen()
    for _ in range(3):
        assert good.evaluate(ASK, [url(entry), SIMPLE]) == "200 llama"
        assert evil.evaluate(ASK, [url(entry), SIMPLE]).startswith("failed:")
    seen = backend.seen()[len(before) :]
    assert len(seen) == 3
    assert len({what.rpartition("client=")[2] for what in seen}) == 1, "good's three shared a connection"
    assert not [what for what in seen if "evil" in what]
    context.close()
