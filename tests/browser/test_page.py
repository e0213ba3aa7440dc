"""The page before a made-up network: what it looks like, says, and does with the keyboard, in each size and theme."""

from __future__ import annotations

import io
import unicodedata
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from conftest import serving
from fake_network import ATTACK, COMMAND, TOKEN, FakeNetwork
from looks import axe_violations, copied, too_wide
from pydantic import TypeAdapter, ValidationError

from federation import units
from federation.ops import schemas

if TYPE_CHECKING:
    from playwright.sync_api import Page

STATES = {
    3: {},
    5: {"dakar": "backend down", "essen": "offline"},
    100: {
        "essen": "backend down", "hanoi": "suspect", "izmir": "draining", "lima": "unreachable", "osaka": "left",
        "rack2-01": "offline", "rack3-07": "backend down",
    },
}  # fmt: skip


def network(machines: int, **how: Any) -> FakeNetwork:
    """Some seconds after its start, with traffic and, from five machines on, with trouble."""
    made = FakeNetwork(machines, **how)
    if machines > 1:
        for t in range(5):
            made.step(t)
    for name, state in STATES.get(machines, {}).items():
        made.set_state(name, state)
    return made


@pytest.mark.parametrize("machines", [1, 5, 100])
def test_it_fits_and_can_be_used_by_everybody(site, page_at, machines: int) -> None:
    page = page_at(site(network(machines)))
    assert page.locator(".card").count() == machines
    for width in (768, 360, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert (width, too_wide(page)) == (width, 0)
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        if machines < 100 or theme == "light":  # a hundred take axe seconds, and have no colours of their own
            assert (theme, axe_violations(page)) == (theme, [])


def test_the_dialogs_can_be_used_by_everybody(site, page_at) -> None:
    page = page_at(site(network(5)), 360, "dark")
    for opener, dialog in (("#add", "#invite"), (".own .card-foot button", "#confirm")):
        page.click(opener)
        page.wait_for_selector(f"{dialog}[open] button >> nth=-1")
        assert axe_violations(page) == []
        overflow = page.eval_on_selector(dialog, "d => d.scrollWidth - d.clientWidth")
        assert (dialog, overflow) == (dialog, 0)
        page.keyboard.press("Escape")
        assert not page.is_visible(dialog)
        assert page.evaluate("document.activeElement.matches(arguments[0])".replace("arguments[0]", repr(opener)))


def test_without_its_node(site, page_at) -> None:
    """The page stays, says since when, and can still be read."""
    with ExitStack() as stack:
        page = page_at(stack.enter_context(serving(network(5))), brings_about="net::ERR_")
    page.wait_for_selector("#banner >> text=/Lost the connection to this node; trying again. What you see is from/")
    assert page.text_content("#live-text") == "not connected"
    assert page.locator(".card").count() == 5
    assert axe_violations(page) == []


def test_states_in_words_and_signs(site, page_at) -> None:
    page = page_at(site(network(5)))
    states = {name: page.text_content(f".card:has-text('{name}') .state") for name in ("athens", "dakar", "essen")}
    assert states == {"athens": "Online", "dakar": "Backend down", "essen": "Offline"}
    figures = page.text_content("#figures")
    assert "4 of 5" in figures
    assert "of 96 GiB" in figures  # 24 + 16 + 48 + 8: what is offline has none to give


def test_peers_names_are_text(site, page_at) -> None:
    hostile = network(3, names=["athens", ATTACK, "\u202egnihtyna" + 50 * "W"])
    page = page_at(site(hostile))
    page.wait_for_selector(".decisions li")
    page.click(f".card:has-text({ATTACK!r}) h3 a")
    page.wait_for_function("attack => document.getElementById('machine-title').textContent === attack", arg=ATTACK)
    page.set_viewport_size({"width": 360, "height": 900})
    assert too_wide(page) == 0
    assert page.evaluate("[window.attacked, document.querySelectorAll('img[src=x]').length]") == [None, 0]


def test_paths_in_words(site, page_at) -> None:
    made = network(3)
    made.rows[1].update(path="relayed", rtt_ms=41.7)
    made.rows[2].update(path="punched", rtt_ms=9.34)
    page = page_at(site(made))
    paths = page.locator(".row:has(dt:text-is('Path')) dd").all_text_contents()
    assert paths == ["this machine", "relayed by another machine, 42 ms", "direct, through a hole in the NAT, 9.3 ms"]


def test_filter_and_kinds(site, page_at) -> None:
    page = page_at(site(network(100)))
    assert page.locator(".cards.dense").count() == 1
    page.fill("#filter", "rack2")
    assert {name[:5] for name in page.locator(".card h3 a").all_text_contents()} == {"rack2"}
    page.fill("#filter", "backend down")
    assert sorted(page.locator(".card h3 a").all_text_contents()) == ["essen", "rack3-07"]
    page.fill("#filter", "nobody has this name")
    assert page.is_visible("#no-match")
    page.fill("#filter", "")
    page.click("text=Needs attention 6")
    assert page.locator(".card").count() == 6
    page.click("text=All 100")
    assert page.locator(".card").count() == 100


def test_keyboard_alone(site, page_at) -> None:
    page = page_at(site(network(5)))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the machines"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#machine-title:text-is('athens')")
    assert page.evaluate("document.activeElement.id") == "machine-title"
    page.go_back()
    page.wait_for_selector(".own h3 a")
    page.focus(".own h3 a")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.text_content("#confirm-title") == "Drain athens?"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Drain …"


def test_add_a_machine(site, page_at) -> None:
    made = network(3)
    page = page_at(site(made), permissions=["clipboard-read", "clipboard-write"])
    page.click("#add")
    assert copied(page, "the token") == scanned(page) == page.text_content("#invite-token") == TOKEN
    assert copied(page, "the command") == page.text_content("#invite-command") == COMMAND
    page.select_option("#invite-server", label="Ollama (127.0.0.1:11434)")
    assert copied(page, "the command") == page.text_content("#invite-command") == f"{COMMAND} --backend 127.0.0.1:11434"
    page.select_option("#invite-server", label="nothing, it only uses the others")  # it would offer what it finds
    assert copied(page, "the command") == f"{COMMAND} --no-detect"
    assert scanned(page) == TOKEN


def test_add_a_machine_by_one_line(site, page_at) -> None:
    made = network(3)
    page = page_at(site(made), permissions=["clipboard-read", "clipboard-write"], brings_about="status of 409")
    page.click("#add")
    page.click("#invite summary >> text=one line")
    made.refusal = "other machines cannot reach the control port"
    page.click("#invite-install")
    page.wait_for_selector("#invite .problem >> text=other machines cannot reach the control port")
    made.refusal = None
    page.select_option("#invite-server", label="Ollama (127.0.0.1:11434)")
    page.click("#invite-install")
    page.wait_for_selector("#install-line")
    line = "u=http://10.0.0.5:8485/handover/x/install.sh; sh --backend 127.0.0.1:11434"
    assert copied(page, "the line") == page.text_content("#install-line") == line
    page.select_option("#invite-server", label="nothing, it only uses the others")
    assert page.text_content("#install-line").endswith("sh --no-detect")
    assert "for 60 minutes, on a machine that reaches http://10.0.0.5:8485" in page.text_content("#invite")
    made.rows.append(FakeNetwork(1, seed=9, names=["dakar"]).rows[0] | {"self": False, "path": "direct"})
    page.wait_for_selector("#joined >> text=dakar is here.")
    assert page.locator(".card").count() == 4


def test_copy_works_where_the_browser_has_no_clipboard_for_us(site, page_at) -> None:
    """As over plain HTTP from another machine."""
    page = page_at(site(network(3)), permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("() => { window.board = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', {}); }")
    page.click("#add")
    assert copied(page, "the token", "window.board") == TOKEN


def scanned(page: Page) -> str:
    """The text of the QR code, as a phone would read it from the screen."""
    import zxingcpp
    from PIL import Image

    (code,) = zxingcpp.read_barcodes(Image.open(io.BytesIO(page.locator(".qr").screenshot())))
    return code.text


def test_without_the_key_it_only_shows(site, page_at) -> None:
    made = network(3)
    page = page_at(site(made).partition("#")[0])
    page.click("#add")
    assert "federation dashboard" in page.text_content("#invite")
    page.keyboard.press("Escape")
    page.click(".own .card-foot button")
    assert "federation dashboard" in page.text_content("#confirm")
    assert page.locator("#confirm button.primary").count() == 0


def test_off_loopback_it_asks_for_the_key(site, page_at) -> None:
    url, _, code = site(network(3), remote=True).partition("#")
    page = page_at(url, brings_about="401", shows="#banner:has-text('federation dashboard')")
    assert page.locator(".card").count() == 0
    page.evaluate("code => { location.hash = code; }", code)
    page.wait_for_selector(".card")
    assert page.is_hidden("#banner")


def test_a_code_is_good_for_one_page_which_may_be_loaded_again(site, page_at) -> None:
    url = site(network(3))
    page = page_at(url)
    assert page.url.endswith("/")  # it does not stay in the address
    assert page.evaluate("Object.keys(sessionStorage)") == ["federation.session"]
    assert url.partition("=")[2] not in page.evaluate(
        "JSON.stringify([{...sessionStorage}, {...localStorage}, history.state])"
    )
    page.reload()
    page.click("#add")
    page.wait_for_selector("#invite-command")
    other = page_at(url, brings_about="403")
    other.wait_for_selector("#banner:has-text('was used before')")
    assert other.evaluate("sessionStorage.length") == 0
    other.click("#add")
    assert "federation dashboard" in other.text_content("#invite")


@pytest.mark.parametrize("fragment", ["#code=wrong", "#key=" + "k" * 43], ids=["no code", "an older version's key"])
def test_an_address_that_opens_nothing_is_said_to_be_one(site, page_at, fragment: str) -> None:
    page = page_at(site(network(3)).partition("#")[0] + fragment, brings_about="403")
    page.wait_for_selector("#banner:has-text('Run `federation dashboard`'), #banner:has-text('run `federation dashboard`')")
    assert page.url.endswith("/")
    assert page.evaluate("sessionStorage.length") == 0


def test_names_show_what_they_are(site, page_at) -> None:
    """As in a terminal: what turns, hides or ends a line is a question mark."""
    names = ["a\u202egnp.exe", "b\u2066c\u2069", "d\u200be", "f\u2028g", "h\u00a0i", "n\u00f8rd \u6771\u4eac"]
    page = page_at(site(network(len(names), names=names)))
    shown = {button.text_content() for button in page.query_selector_all(".card h3 a")}
    assert shown == {units.visible(name) for name in names}
    assert "a?gnp.exe" in shown
    page.click(".card h3 a >> nth=0")
    everything = page.evaluate("document.documentElement.outerHTML + document.title")
    assert not [character for name in names for character in name if not character.isprintable() and character in everything]


def test_the_page_and_the_terminal_have_one_rule(site, page_at) -> None:
    page = page_at(site(network(3)))
    known = [code for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cn", "Cs")]
    text = "".join(map(chr, known))
    shown = page.evaluate("async (text) => (await import('/static/format.js')).visible(text)", text)
    assert len(shown) == len(text)
    assert [hex(ord(c)) for c, here in zip(text, shown, strict=True) if units.visible(c) != here] == []


def test_decisions_and_what_became_of_them(site, page_at) -> None:
    made = FakeNetwork(3)
    page = page_at(site(made))
    assert page.is_visible("#no-decisions") or page.is_hidden("#activity")
    newest = made.connect()
    page.wait_for_selector(f".decisions li >> text={newest['name']}")
    page.click(".decisions li:first-child summary")
    page.wait_for_selector("text=done after 2 s; 412 B in, 90.2 kB out.")
    assert page.text_content(".decisions tr.chosen td") == newest["name"]
    page.click("#pause")
    made.connect()
    page.wait_for_selector("#pause >> text=Pause, 1 newer")


def test_reasons_in_words(site, page_at) -> None:
    page = page_at(site(network(3)))

    def reason(tier: str, chosen: dict[str, Any], *others: dict[str, Any], attempt: int = 1) -> str:
        rows = [
            {"peer_id": str(i), "name": f"n{i}", "in_flight": 0, "last_used_age_s": None, "available_vram": 0, "served": 0}
            | row
            for i, row in enumerate((chosen, *others))
        ]
        decision = {"tier": tier, "chosen": "0", "attempt": attempt, "candidates": rows}
        return page.evaluate("d => import('/static/format.js').then(m => m.reason(d))", decision)

    gib = 2**30
    assert reason("only", {}) == "the only machine that could take it"
    assert reason("only", {}, attempt=2) == "the only one left to try"
    assert reason("capacity", {"in_flight": 2}, {}) == "the others are at their capacity"
    assert reason("in_flight", {}, {"in_flight": 3}, {"in_flight": 2}) == "least busy: nothing open, next is n2 with 2"
    assert reason("last_used", {}, {"last_used_age_s": 1}) == "nothing open, like n1, and not used yet"
    used = {"in_flight": 1, "last_used_age_s": 12.3}
    assert reason("last_used", used, used, used) == "1 open, like 2 others, and longest unused: 12 s"
    assert (
        reason("available_vram", {"available_vram": 24 * gib}, {"available_vram": 8 * gib})
        == "nothing open, like n1, and most free VRAM: 24 GiB, next is n1 with 8"
    )
    assert reason("served", {"served": 4}, {"served": 5}) == "has served fewest: 4"
    assert reason("random", {}, {}) == "by chance, as the policy says"
    assert reason("tiebreak", {}, {}) == "all equal, so by this machine's own fixed order"
    assert reason("a tier of tomorrow", {}, {}) == "ahead in a tier of tomorrow"


def test_first_steps_of_a_lonely_node(site, page_at) -> None:
    made = FakeNetwork(1)
    made.rows[0].update(services={}, state="no backend")
    page = page_at(site(made))
    assert page.text_content("#first-title") == "This is the only machine so far"
    assert page.locator(".steps .done").count() == 0
    made.rows[0].update(services={"default": True}, state="online")
    page.wait_for_selector(".steps .done >> text=Offer a server")
    made.rows.append(FakeNetwork(1, seed=9, names=["dakar"]).rows[0] | {"self": False, "path": "direct"})
    page.wait_for_selector("#first", state="hidden")


def test_the_fake_answers_as_the_api_does() -> None:
    made = network(5)
    made.add_model("gemma", warm=("athens",), cold=("cusco",), size=5 * 2**30)
    for shape, answer in (
        (schemas.Status, made.status()),
        (list[schemas.Peer], made.peers()),
        (list[schemas.Decision], [*made.explain(20), *made.explain(1, 1)]),
        (schemas.Draining, made.drain_status()),
        (schemas.Invite, made.invite()),
        (schemas.Models, made.models()),
    ):
        try:
            TypeAdapter(shape).validate_python(answer, strict=True)
        except ValidationError as error:
            assert {problem["type"] for problem in error.errors()} == {"missing"}, (
                error
            )  # the page asks for less than there is


def test_after_a_reload_nothing_is_lost(site, page_at) -> None:
    made = FakeNetwork(3)
    page = page_at(site(made))
    for number in (1, 2):  # one at a time: of a burst the stream has the newest only
        made.connect()
        page.wait_for_function("n => document.querySelectorAll('.decisions li').length === n", arg=number)
    page.reload()
    page.wait_for_function("() => document.querySelectorAll('.decisions li').length === 2")
    page.click("#add")
    assert page.text_content("#invite-command")  # the key is still there
