"""The page before real daemons: machines come, are drained and killed; the daemon that serves the page goes and is back."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING

import pytest
from harness import Daemon, federation, http_get, wait_until

if TYPE_CHECKING:
    from fleet import Fleet

SLOW_MS = 20_000  # several processes on two cores


@pytest.fixture(scope="module")
def athens(fleet: Fleet) -> Daemon:
    return fleet.daemon("athens", "--vram", "24GiB", backend=fleet.backend("http", "a"), owner=True)


def address(daemon: Daemon) -> str:
    """A new one, as the command prints it: good for one page."""
    return federation("dashboard", "--state-dir", str(daemon.state_dir), home=daemon.directory).stdout.strip()


def card(name: str, state: str) -> str:
    return f".card[data-state='{state}']:has-text('{name}')"


def test_the_network_as_it_lives(fleet: Fleet, athens: Daemon, page_at) -> None:
    page = page_at(address(athens), brings_about="net::ERR_|401", permissions=["clipboard-read", "clipboard-write"])
    assert page.is_visible("#first")  # alone so far

    # "Add a machine": the token from the page, given as its command asks for it, brings one in.
    page.click("#add")
    page.get_by_role("button", name="Copy the token").click()
    page.wait_for_selector("#invite >> text=Copied")
    token = page.evaluate("navigator.clipboard.readText()")
    assert page.text_content("#invite-command") == "federation join --token-file -"
    file = fleet.directory / "invited"
    file.write_text(token)
    bergen = fleet.daemon("bergen", "--vram", "16GiB", backend=fleet.backend("http", "b"), token_file=file)
    page.wait_for_selector("#joined >> text=bergen is here.", timeout=SLOW_MS)
    page.keyboard.press("Escape")
    page.wait_for_selector(card("bergen", "online"))
    assert page.is_hidden("#first")

    # Connections show with their reasons.
    wait_until(lambda: athens.offers() == {"athens", "bergen"}, within=10, what="both serve")
    for _ in range(4):
        assert http_get(athens.entry()).status == 200
    page.wait_for_function("() => document.querySelectorAll('.decisions li').length === 4")
    page.click(".decisions li:first-child summary")
    page.wait_for_selector("text=/Connection 4, default, from 127.0.0.1:.*: done after/")
    shares = "() => [...document.querySelectorAll('.share')].reduce((sum, bar) => sum + bar.value, 0)"
    page.wait_for_function(f"() => Math.abs(({shares})() - 1) < 0.01")

    # Drained by the button, and back; the other machine hears of it.
    def drained() -> bool:
        return next(row["draining"] for row in bergen.peers() if row["name"] == "athens")

    page.click(".own .card-foot button")
    page.click("#confirm >> text=Cancel")
    assert not drained()
    with socket.create_connection(athens.entry()):
        page.wait_for_selector("#figures >> text=/Connections now1 /")
        page.click(".own .card-foot button")
        page.click("#confirm button.primary")
        page.wait_for_selector(card("athens", "draining"))
        page.wait_for_selector("text=/Still open: .*1 client of its own port/")
    page.wait_for_selector("text=Nothing open: safe to reboot")
    wait_until(drained, within=10, what="bergen hears that athens drains")
    page.click(".own .card-foot button")
    page.click("#confirm button.primary")
    page.wait_for_selector(card("athens", "online"))

    # The owner drains the other machine from its page, and makes a key for a client.
    page.click(".card:has-text('bergen') h3 a")
    page.wait_for_selector("#machine-past:has-text('open on average')")
    page.get_by_role("button", name="Drain …").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#machine-state-text:text-is('Draining')")
    assert next(row["draining"] for row in bergen.peers() if row["name"] == "bergen")
    page.get_by_role("button", name="Undrain …").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#machine-state-text:text-is('Online')")
    page.click("#views >> text=Log")
    page.wait_for_selector("#log-lines li:has-text('peer joined the network')")
    page.click("#views >> text=Check-up")
    page.wait_for_selector("#findings h3:has-text('backend')", timeout=SLOW_MS)
    page.click("#views >> text=Overview")
    page.click("#make-key")
    page.fill("#key-name", "phone")
    page.click("#key button.primary")
    page.wait_for_selector("#key-text:has-text('fedk_')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#keys-rows th:text-is('phone')")

    # Killed: its card turns, without a word from it.
    bergen.kill()
    page.wait_for_selector(card("bergen", "unreachable"))
    assert "bergen: unreachable" in page.text_content("#announce")

    # Its own daemon goes: the page says so, and is live again by itself when it is back.
    athens.kill()
    page.wait_for_selector("#banner:has-text('Lost the connection')")
    athens.start()
    page.wait_for_selector("#banner", state="hidden", timeout=SLOW_MS)
    page.wait_for_selector("#live >> text=live")
    page.wait_for_selector(card("athens", "online"))

    # It shows, and no more: its session ended with the daemon. A new address makes it the owner's again.
    page.click("#add")
    page.wait_for_selector("#invite >> text=federation dashboard")
    page.keyboard.press("Escape")
    page.goto(address(athens))
    page.wait_for_selector(card("athens", "online"))
    page.click("#add")
    page.wait_for_selector("#invite-command")


def test_requests_and_models_as_they_are(fleet: Fleet, page_at) -> None:
    token = fleet.new_token("models-token", "models")
    nodes: list[Daemon] = []
    for name in ("dakar", "essen"):
        server = fleet.model_server(name, "gemma", name)
        offer = ("--listen", "http://127.0.0.1:0", "--backend", f"http://127.0.0.1:{server.address[1]}")
        peer = nodes[0] if nodes else None
        nodes.append(fleet.daemon(name, *offer, services=(), token_file=token, peer=peer))
    dakar = nodes[0]
    wait_until(lambda: len(dakar.api("models")["models"]) == 3, within=20, what="dakar knows all models")
    page = page_at(address(dakar), shows="#models-rows tr")
    page.wait_for_selector("#models-rows tr >> nth=2", timeout=SLOW_MS)
    names = page.locator("#models-rows th").all_text_contents()
    assert names == ["dakar", "essen", "gemma"]
    assert page.locator("#models-rows tr >> nth=2").locator(".place").count() == 2
    assert "Requests now" in page.text_content("#figures")

    # Each request of a kept connection is a decision of its own.
    kept = http.client.HTTPConnection(*dakar.entry(), timeout=60)
    for model in ("essen", "dakar", "essen"):
        kept.request("POST", "/v1/chat/completions", json.dumps({"model": model}), {"Content-Type": "application/json"})
        assert kept.getresponse().read()
    kept.close()
    page.wait_for_function("() => document.querySelectorAll('.decisions li').length === 3")
    assert page.locator(".decisions li b").all_text_contents() == ["essen", "dakar", "essen"]
    page.click(".decisions li:first-child summary")
    page.wait_for_selector("text=/Request 3 of connection 1, .*, from 127.0.0.1:.*: done after/")

    page.click("#use-it")
    assert f"http://127.0.0.1:{dakar.entry()[1]}/v1/chat/completions" in page.text_content("#use-code")
