"""Newcomers that wait for a yes, open invites, and the code for one machine, on the page."""

from __future__ import annotations

from typing import Any

from fake_network import ATTACK, CODE, FakeNetwork
from looks import axe_violations

from federation.ops.invites import InviteWish

PEER = "12D3KooW" + "a" * 44


def waits(name: str = "bergen", peer_id: str = PEER) -> dict[str, Any]:
    return {"peer_id": peer_id, "name": name, "address": "192.0.2.9:5", "invite": "c43941ad", "waits_s": 61.0}


def invite() -> dict[str, Any]:
    return {
        "id": "c43941ad", "state": "open", "made_at": "2026-01-02T03:04:05+00:00", "expires_at": "2036-01-02T04:04:05+00:00",
        "uses": 2, "used": [], "approve": True,
    }  # fmt: skip


def test_without_any_there_is_nothing_to_see(site, page_at) -> None:
    page = page_at(site(FakeNetwork(2)), shows="#cards li")
    with page.expect_response("**/api/v1/invites"):
        pass
    assert page.is_hidden("#newcomers")


def test_yes_and_no(site, page_at) -> None:
    network = FakeNetwork(2)
    other = PEER[:-1] + "b"
    network.waiting = [waits(ATTACK), waits("cyd", other)]
    network.invite_rows = [invite()]
    page = page_at(site(network), shows="#newcomers-rows tr")
    row = page.locator("#newcomers-rows tr >> nth=0")
    assert row.locator("th").text_content() == ATTACK
    assert row.locator("td").all_text_contents()[:3] == [PEER, "192.0.2.9:5", "61 s"]
    assert page.text_content("#newcomers-title") == "Newcomers that wait for your yes"
    assert "2 of 2 left" in page.text_content("#invites")
    assert axe_violations(page) == []
    row.get_by_role("button", name="Let in").click()
    assert PEER in page.text_content("#confirm")
    page.click("#confirm button.primary")
    page.locator("#newcomers-rows tr >> nth=1").wait_for(state="detached")
    page.get_by_role("button", name="Turn away cyd").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#newcomers-table", state="hidden")
    page.get_by_role("button", name="Revoke the invite c43941ad").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#newcomers", state="hidden")
    assert network.wishes == [f"approve {PEER}", f"refuse {other}", "revoke c43941ad"]


def test_a_page_without_a_session_sees_and_does_not_decide(site, page_at) -> None:
    network = FakeNetwork(2)
    network.waiting = [waits()]
    page = page_at(site(network).partition("#")[0], shows="#newcomers-rows tr")
    page.get_by_role("button", name="Let in bergen").click()
    assert "federation dashboard" in page.text_content("#confirm")
    assert network.wishes == []


def test_a_code_for_one_machine(site, page_at) -> None:
    network = FakeNetwork(2)
    page = page_at(site(network), shows="#cards li")
    page.click("#add")
    page.click("#invite summary")
    page.select_option("#code-lifetime", "600")
    page.check("#code-approve")
    page.click("#make-code")
    page.wait_for_selector("#invite-code")
    assert page.text_content("#invite-code") == CODE
    assert axe_violations(page) == []
    assert "only from here" in page.text_content("#invite")
    assert network.wishes == [InviteWish(600.0, 1, True)]
