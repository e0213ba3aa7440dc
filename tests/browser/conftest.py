"""Headless Chromium on the dashboard. Without Chromium or Playwright these tests skip; `scripts/browser` installs both.

`site` serves a made-up network (fake_network.py) by the real control API, in this process; `fleet` (of tests/integration)
starts real daemons. `page_at` opens a page and, at the end, holds it to what is true of every page: no message on the
console, no error, no request to anybody but its own node.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

HERE = Path(__file__).parent
sys.path.append(str(HERE.with_name("integration")))  # its fleet.py and harness.py

from fake_network import KEY, FakeNetwork  # noqa: E402
from fleet import Fleet  # noqa: E402

from federation.api import server  # noqa: E402
from federation.units import HostPort  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIBRARIES = ("playwright", "axe_playwright_python", "zxingcpp", "PIL")
STEP_MS = 15_000  # for whatever a page is to show; on a quiet machine it comes within a second or two


def missing() -> str:
    libraries = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    return ", ".join(libraries if CHROMIUM else ["chromium", *libraries])


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = missing()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if why:
                item.add_marker(pytest.mark.skip(reason=f"no {why}: scripts/browser installs what is missing"))


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """One for all: a second one in the same process is refused."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    # No name resolves, so a request that leaves this machine would fail, and be seen to; but for three that are made up.
    made_up = ", ".join(f"MAP {name} 127.0.0.1" for name in ("evil.example", "chat.example", "rebind.example"))
    options = [f"--host-resolver-rules={made_up}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # Chromium's does not work for root
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
    yield browser
    browser.close()


@pytest.fixture
def page_at(browser: Browser) -> Iterator[Callable[..., Page]]:
    """page_at(url, width=1280, theme="light", brings_about="", shows=".card", **context): a page, with a context of its own.

    `brings_about`: what the test itself makes the console say, one or another|of them. `shows`: waited for.
    """
    wrong: list[str] = []
    contexts: list[BrowserContext] = []

    def open_page(
        url: str, width: int = 1280, theme: str = "light", brings_about: str = "", shows: str = ".card", **how: Any
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, locale="en-GB", timezone_id="UTC", **how
        )
        contexts.append(context)
        context.set_default_timeout(STEP_MS)
        page = context.new_page()
        origin = url.partition("#")[0].rstrip("/")

        def check(kind: str, text: str) -> None:
            if not any(part in text for part in filter(None, brings_about.split("|"))):
                wrong.append(f"{kind}: {text}")

        page.on("console", lambda message: check("console", message.text))
        page.on("pageerror", lambda error: check("error", str(error)))
        page.on("request", lambda r: None if r.url.startswith(f"{origin}/") else check("request", r.url))
        page.goto(url)
        page.wait_for_selector(shows)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@contextmanager
def serving(network: FakeNetwork, past: Iterable[dict[str, Any]] = (), *, remote: bool = False) -> Iterator[str]:
    """The address of the network's dashboard, a code in it. `past`: states that it remembers; `remote`: as off loopback."""
    started = threading.Event()
    scope = trio.CancelScope()
    facts: dict[str, Any] = {}

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            with scope:
                facts["token"] = trio.lowlevel.current_trio_token()
                app = server.create_app(network, KEY, remote=remote)
                for state in past:
                    app.state.hub._publish("state", state)
                facts["code"] = app.state.sessions.new_code()
                facts["address"] = await nursery.start(server.serve, app, HostPort("127.0.0.1", 0))
                started.set()
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    thread = threading.Thread(target=trio.run, args=(serve,), name="control")
    thread.start()
    try:
        assert started.wait(60)
        yield f"http://127.0.0.1:{facts['address'].port}/#code={facts['code']}"
    finally:
        facts["token"].run_sync_soon(scope.cancel)
        thread.join()


@pytest.fixture
def site() -> Iterator[Callable[..., str]]:
    """site(network, past=(), remote=False): its dashboard's address."""
    with ExitStack() as stack:
        yield lambda network, past=(), **how: stack.enter_context(serving(network, past, **how))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        yield fleet
    finally:
        wrong = fleet.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="session")
def pictures() -> Path | None:
    """Where the documentation's pictures go; scripts/browser --pictures sets it."""
    directory = os.environ.get("DASHBOARD_PICTURES")
    return Path(directory) if directory else None
