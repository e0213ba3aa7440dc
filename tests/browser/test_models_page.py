"""The page of a network with models: which machine has which, how clients use them, and their keys."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fake_network import ATTACK, FakeNetwork
from looks import axe_violations, copied, too_wide

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

GIB = 2**30
KEY_TEXT = "fedk_" + "aB3" * 10 + "xy"
NOT_TOLD = "\u2013"
HOSTILE = "it's\" $(touch attacked) `id` \\"


def network() -> FakeNetwork:
    made = FakeNetwork(3)
    made.step(1)
    made.add_model("gemma3:27b", warm=("athens",), cold=("bergen", "cusco"), size=17 * GIB)
    made.add_model("qwen", cold=("bergen",), requests=1204, first_token_s=0.312, tokens_per_s=41.25)
    return made


def cells(page: Page, model: str) -> list[str]:
    return page.locator(f"#models-rows tr:has(th:text-is({json.dumps(model)})) td").all_text_contents()


def test_models_by_machine(site, page_at) -> None:
    made = network()
    busy = [row["in_flight"] for row in made.rows]
    page = page_at(site(made), shows="#models-rows tr")
    places, size, open_, requests, first_token, tokens = cells(page, "gemma3:27b")
    assert places == "athens, in memorybergen, on diskcusco, on disk"
    assert page.locator("#models-rows .place.warm").all_text_contents() == ["athens, in memory"]
    assert (size, requests, first_token, tokens) == ("17 GiB", NOT_TOLD, NOT_TOLD, NOT_TOLD)  # what a node does not tell
    assert int(open_) >= 0
    assert cells(page, "qwen") == ["bergen, on disk", NOT_TOLD, str(busy[1]), "1,204", "312 ms", "41"]
    rows = page.locator(".row:has(dt:text-is('Models')) dd").all_text_contents()
    assert rows == ["gemma3:27b in memory", "2 models on disk", "1 model on disk"]
    page.click(".card:has-text('bergen') h3 a")
    assert page.locator("#machine-facts .place").all_text_contents() == ["gemma3:27b, on disk", "qwen, on disk"]


def test_it_speaks_of_requests_where_there_are_models(site, page_at) -> None:
    made = network()
    page = page_at(site(made), shows="#models-rows tr")
    words = page.text_content("main")
    assert "Requests now" in words
    assert "Requests per machine" in words
    assert "onnection" not in page.locator("#figures").text_content()
    page.click(".own .card-foot button")
    assert "New requests go to other machines" in page.text_content("#confirm-text")
    made.model_rows.clear()
    page.wait_for_selector("#figures >> text=Connections now")
    assert page.is_hidden("#models")


def test_what_became_of_a_request(site, page_at) -> None:
    page = page_at(site(network()))
    ended = {"seconds": 2.4, "received": 412, "delivered": 90_210, "error": None}
    answer = {"status": 200, "queued_s": 0, "first_s": 0.4, "is_stream": True}
    answer["tokens"] = {"taken": 2000, "made": 80, "cached": 1500}
    told = {"id": 7, "request": 3, "service": "default", "client": "127.0.0.1:40000", "failed": None}
    said = "d => import('/static/format.js').then(m => m.outcomeOf(d))"
    assert page.evaluate(said, told | {"ended": ended}) == (
        "Request 3 of connection 7, default, from 127.0.0.1:40000: done after 2 s; 412 B in, 90.2 kB out."
    )
    more = {"model": "qwen", "ended": ended | {"answer": answer, "key": "phone"}}
    assert page.evaluate(said, told | more) == (
        "Request 3 of connection 7, qwen, from 127.0.0.1:40000, with the key phone: done after 2 s; 412 B in, 90.2 kB out, "
        "first token after 400 ms, 80 tokens, 40 a second, 75 % of the prompt cached."
    )


def test_many_models_and_strange_names(site, page_at) -> None:
    made = network()
    for n in range(40):
        made.add_model(f"model-{n}", cold=("cusco",))
    made.add_model(ATTACK + "W" * 150, warm=("athens", "bergen", "cusco"))
    page = page_at(site(made), shows="#models-rows tr")
    assert page.locator("#models-rows tr").count() == 12
    page.click("text=Show all 43")
    assert page.locator("#models-rows tr").count() == 43
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert (width, too_wide(page)) == (width, 0)
    assert axe_violations(page) == []
    assert page.evaluate("[window.attacked, document.querySelectorAll('img[src=x]').length]") == [None, 0]


def use(page: Page, client: str) -> str:
    page.select_option("#use-client", label=client)
    return page.text_content("#use-code")


def test_use_it(site, page_at) -> None:
    page = page_at(site(network()), shows="#models-rows tr", permissions=["clipboard-read", "clipboard-write"])
    page.click("#use-it")
    assert copied(page, "the address") == "http://127.0.0.1:8484"
    page.select_option("#use-model", "qwen")
    page.wait_for_selector("#use-code:has-text('qwen')")
    curl = shlex.split(use(page, "curl").replace("\\\n", " "))
    assert curl[:2] == ["curl", "http://127.0.0.1:8484/v1/chat/completions"]
    assert json.loads(curl[-1])["model"] == "qwen"
    assert not any("Authorization" in word for word in curl)  # no port asks for a key
    assert use(page, "OpenAI's clients") == "export OPENAI_BASE_URL=http://127.0.0.1:8484/v1\nexport OPENAI_API_KEY=none"
    assert 'base_url="http://127.0.0.1:8484/v1"' in page.text_content("#use-code-1")
    assert "OPENAI_API_BASE_URL=http://127.0.0.1:8484/v1" in use(page, "Open WebUI")
    assert page.text_content("#use-code-1").startswith("docker run -d ")
    assert json.loads(use(page, "Claude Code"))["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8484"
    assert "federation use claude-code --write" in page.text_content("#use")
    assert copied(page, "it") == page.text_content("#use-code")
    assert "null" not in page.text_content("#use")
    assert axe_violations(page) == []
    page.set_viewport_size({"width": 360, "height": 900})
    assert page.eval_on_selector("#use", "d => d.scrollWidth - d.clientWidth") == 0


def test_a_port_with_tls_and_keys(site, page_at) -> None:
    made = network()
    status = made.status
    made.status = lambda: with_port(status(), scheme="https", names=["gpu.lan"], asks_key=True)
    page = page_at(site(made), shows="#models-rows tr")
    assert page.text_content("#listens code") == "https://gpu.lan:8484"
    page.click("#use-it")
    assert "https://gpu.lan:8484/v1/chat/completions" in page.text_content("#use-code")
    assert "Authorization: Bearer YOUR_KEY" in page.text_content("#use-code")
    assert "YOUR_KEY: one of the keys below" in page.text_content("#use-key")


def with_port(status: dict[str, Any], **more: Any) -> dict[str, Any]:
    status["node"]["listeners"] = [{"service": "default", "address": "0.0.0.0:8484", **more}]
    return status


def test_a_models_name_runs_nothing_where_it_is_pasted(site, page_at, tmp_path) -> None:
    made = network()
    made.add_model(HOSTILE, warm=("athens",))
    page = page_at(site(made), shows="#models-rows tr")
    page.click("#use-it")
    page.select_option("#use-model", HOSTILE)
    page.wait_for_selector("#use-code:has-text('touch attacked')")
    (tmp_path / "curl").write_text('#!/bin/sh\nprintf %s "$5"\n')
    (tmp_path / "ollama").write_text('#!/bin/sh\nprintf %s "$2"\n')
    for name in ("curl", "ollama"):
        (tmp_path / name).chmod(0o755)
    for client in ("curl", "Ollama's clients"):
        command = use(page, client)
        command = page.text_content("#use-code-1") if client != "curl" else command
        where = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", command], env=where, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (json.loads(done.stdout)["model"] if client == "curl" else done.stdout) == HOSTILE
    use(page, "OpenAI's clients")
    script = page.text_content("#use-code-1")
    script = f"class OpenAI:\n  def __init__(self, **_): self.chat = self.completions = self\n{script.partition(chr(10))[2]}"
    script = script.replace("print(", "(").replace("answer = client.chat.completions.create", "print_model")
    said = f"def print_model(model, **_): print(model)\n{script.partition('(answer')[0]}"
    done = subprocess.run([sys.executable, "-c", said], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{HOSTILE}\n"
    assert not (tmp_path / "attacked").exists()


def test_a_port_for_all_addresses_is_named_by_the_pages_own(site, page_at) -> None:
    page = page_at(site(network()))
    named = "async a => (await import('/static/use.js')).urlOf(a, 'box.lan')"

    def url(address: str, *names: str) -> str:
        return page.evaluate(named, {"address": address, "scheme": "https" if names else "http", "names": names})

    assert url("0.0.0.0:8484") == url("[::]:8484") == "http://box.lan:8484"
    assert url("[::1]:8484") == "http://[::1]:8484"
    assert url("0.0.0.0:8484", "box.lan") == url("0.0.0.0:8484", "x", "*.lan") == "https://box.lan:8484"
    assert url("0.0.0.0:8484", "*.other", "gpu.example") == url("10.0.0.1:8484", "gpu.example") == "https://gpu.example:8484"
    assert page.evaluate(named, {"address": "127.0.0.1:8484"}) == "http://127.0.0.1:8484"  # of a node that says no more


# Keys. Where the API has none the section is not there.


class KeyRoutes:
    """What the node answers about keys, in the shapes of its API."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.wishes: list[dict[str, Any]] = []

    def __call__(self, route: Route) -> None:
        request = route.request
        if request.url.endswith("openapi.json"):
            return route.fulfill(json={"paths": {"/api/v1/keys": {}}})
        assert request.headers.get("authorization", "").startswith("Bearer ") or request.method == "GET"
        if request.url.endswith("/keys/revoke"):
            self.keys = [key for key in self.keys if key["name"] != request.post_data_json["name"]]
        elif request.method == "POST":
            assert request.url.endswith("/keys/add")
            self.wishes.append(request.post_data_json)
            if self.wishes[-1]["name"] == "taken":
                return route.fulfill(status=409, json={"error": "there is a key named taken"})
            self.add(self.wishes[-1]["name"], models=self.wishes[-1]["models"])
            return route.fulfill(json=self.keys[-1] | {"key": KEY_TEXT})
        asked = {"asked_off_loopback": bool(self.keys), "asked_on_loopback": False}
        return route.fulfill(json={"keys": self.keys, **asked, "entries": 3, "entries_counted": 2})

    def add(self, name: str, models: list[str] | None = None, **more: Any) -> None:
        made = {"id": "0a1b2c3d", "made_at": "2026-11-02T10:00:00+00:00", "made_by": "12D3", "made_by_name": "athens"}
        use = {"expires_at": None, "rate": None, "last_used": None, "requests": 0}
        self.keys.append({"name": name, "models": models or [], **made, **use, **more})


@pytest.fixture
def with_keys(site, page_at):
    def open_page(routes: KeyRoutes, **how: Any) -> Page:
        page = page_at(site(network()), shows="#models-rows tr", **how)
        page.route("**/api/v1/openapi.json", routes)
        page.route("**/api/v1/keys**", routes)
        page.reload()
        page.wait_for_selector("#keys")
        return page

    return open_page


def test_where_the_api_has_no_keys_there_is_no_section(site, page_at) -> None:
    page = page_at(site(network()), shows="#models-rows tr")
    page.route("**/api/v1/openapi.json", lambda route: route.fulfill(json={"paths": {}}))
    with page.expect_response("**/api/v1/openapi.json"):
        page.reload()
    page.wait_for_selector("#models-rows tr")
    assert page.is_hidden("#keys")


def test_keys_and_their_use(with_keys) -> None:
    routes = KeyRoutes()
    routes.add(ATTACK, ["gemma3:27b", "qwen"], expires_at="2027-01-01T00:00:00+00:00", rate="60/m", requests=1204)
    page = with_keys(routes)
    row = page.locator("#keys-rows tr >> nth=0")
    assert row.locator("th").text_content() == ATTACK
    assert row.locator("td").all_text_contents() == [
        "gemma3:27b, qwen", "1 Jan 2027", "60/m", "2 Nov 2026 at athens", "not yet", "1,204", "Revoke …",
    ]  # fmt: skip
    assert "those on loopback do not" in page.text_content("#keys-note")
    assert "Use is counted at 2 of 3 machines, since each started" in page.text_content("#keys-note")
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert (width, too_wide(page)) == (width, 0)
    assert axe_violations(page) == []
    row.get_by_role("button").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#keys-rows tr", state="detached")
    assert routes.keys == []


def test_a_key_is_made_shown_once_and_used(with_keys) -> None:
    routes = KeyRoutes()
    page = with_keys(routes, permissions=["clipboard-read", "clipboard-write"], brings_about="409")
    page.click("#make-key")
    assert axe_violations(page) == []
    page.fill("#key-name", "taken")
    page.click("#key button.primary")
    page.wait_for_selector("#key .problem:has-text('there is a key named taken')")
    page.fill("#key-name", " phone ")
    page.fill("#key-models", "qwen, , gemma3:27b")
    page.select_option("#key-expires", label="in 30 days")
    page.select_option("#key-rate", label="60 requests a minute")
    page.click("#key button.primary")
    page.wait_for_selector("#key-text")
    wish = {"name": "phone", "models": ["qwen", "gemma3:27b"], "lifetime_s": 30 * 86400, "requests": 60, "seconds": 60}
    assert routes.wishes[-1] == wish
    assert copied(page, "the key") == page.text_content("#key-text") == KEY_TEXT
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys-rows th:text-is('phone')")
    assert KEY_TEXT not in page.content()
    assert KEY_TEXT not in page.evaluate(
        "JSON.stringify([{...sessionStorage}, {...localStorage}, history.state, location.href])"
    )
    page.click("#use-it")
    assert f"Authorization: Bearer {KEY_TEXT}" in page.text_content("#use-code")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("#keys-rows th:text-is('phone')")
    page.click("#use-it")
    assert "Authorization" not in page.text_content("#use-code")  # the port is on loopback
    assert "This port asks for no key" in page.text_content("#use-key")


def test_a_key_that_was_revoked_is_offered_no_more(with_keys) -> None:
    page = with_keys(KeyRoutes())
    page.click("#make-key")
    page.fill("#key-name", "phone")
    page.click("#key button.primary")
    page.wait_for_selector("#key-text")
    page.keyboard.press("Escape")
    page.click("#keys-rows button")
    page.click("#confirm button.primary")
    page.wait_for_selector("#keys-rows tr", state="detached")
    page.click("#use-it")
    assert KEY_TEXT not in page.text_content("#use")


def test_without_a_session_keys_are_only_shown(site, page_at) -> None:
    routes = KeyRoutes()
    routes.add("phone")
    page = page_at(site(network()).partition("#")[0])
    page.route("**/api/v1/openapi.json", routes)
    page.route("**/api/v1/keys**", routes)
    page.reload()
    page.wait_for_selector("#keys-rows th:text-is('phone')")
    page.click("#make-key")
    assert "federation dashboard" in page.text_content("#key")
    page.keyboard.press("Escape")
    page.click("#keys-rows button")
    assert "federation dashboard" in page.text_content("#confirm")
