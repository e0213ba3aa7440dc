"""The dashboard's further pages: a machine's, connections, log, check-up, bans; links to them; the browser's notices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from fake_network import ATTACK, FakeNetwork
from looks import axe_violations, copied, too_wide

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGES = ("", "connections", "log", "checkup", "bans")
RECORD_NOTICES = """
window.notices = [];
window.Notification = class { constructor(title, how) { window.notices.push([title, how.tag]); } };
Notification.permission = "default";
Notification.requestPermission = async () => (Notification.permission = "granted");
"""


def network(machines: int = 4) -> FakeNetwork:
    made = FakeNetwork(machines)
    for t in range(5):
        made.step(t)
    made.owner_here = True
    made.past = [[None, 0.0, 2.5, 4.0 + i, 1.0] for i in range(machines)]
    for n in range(30):
        made.log("connection", client=f"192.0.2.7:{n}", seconds=0.5, why="done")
    made.log("peer does not answer; nobody is sent there until it does", "warning", peer="12D3KooWabc")
    made.findings = [
        {"check": "token", "severity": "ok", "finding": "set", "fix": ""},
        {"check": "open files", "severity": "info", "finding": "1024", "fix": "ulimit -n 32768 before the start"},
        {"check": "backend", "severity": "fail", "finding": f"{ATTACK} does not answer", "fix": "start that server"},
        {"check": "draining", "severity": "warn", "finding": "it is", "fix": "run `federation undrain` here"},
    ]
    made.banned_rows = [{"peer_id": "12D3KooWbad", "name": ATTACK, "since": "2026-11-02T10:00:00+00:00"}]
    return made


def go(page: Page, name: str) -> None:
    page.evaluate("hash => { location.hash = hash; }", f"#/{name}")
    page.wait_for_selector(f"[data-view={name.partition('/')[0] or 'none'}]:not(.elsewhere)" if name else "#machines")


@pytest.mark.parametrize("name", [*PAGES, "machine/own", "machine/other", "machine/nobody"])
def test_each_page_fits_and_can_be_used_by_everybody(site, page_at, name: str) -> None:
    made = network()
    page = page_at(site(made))
    go(page, name.replace("own", made.rows[0]["peer_id"]).replace("other", made.rows[1]["peer_id"]))
    for width, theme in ((360, "dark"), (1280, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        assert (width, too_wide(page)) == (width, 0)
        assert (theme, axe_violations(page)) == (theme, [])
    assert page.evaluate("window.attacked") is None


def test_a_link_names_page_and_machine_and_no_secret(site, page_at) -> None:
    made = network()
    peer = made.rows[2]
    url = site(made)
    page = page_at(url, permissions=["clipboard-read", "clipboard-write"])
    page.click(f".card:has-text({peer['name']!r}) h3 a")
    page.wait_for_selector(f"#machine-title:text-is({peer['name']!r})")
    assert page.title() == f"{peer['name']} · homelab · federation"
    link = copied(page, "the link to this page")
    assert link == f"{url.partition('#')[0]}#/machine/{peer['peer_id']}"
    other = page_at(link, shows="#views")  # another browser, without a session
    other.wait_for_selector(f"#machine-title:text-is({peer['name']!r})")
    assert other.is_hidden("#machines")
    page.reload()
    page.wait_for_selector(f"#machine-title:text-is({peer['name']!r})")
    page.click("#views >> text=Overview")
    page.wait_for_selector("#machines")
    page.go_back()
    page.wait_for_selector(f"#machine-title:text-is({peer['name']!r})")
    assert page.evaluate("document.activeElement.id") == "machine-title"


@pytest.mark.parametrize("hash_", ["#/nothing", "#/machine/%", "#machines", "#/machine/" + "x" * 3000])
def test_an_address_that_is_none_breaks_nothing(site, page_at, hash_: str) -> None:
    page = page_at(site(network()).partition("#")[0] + hash_, shows="#views")
    page.wait_for_selector("#machine-not" if "machine/" in hash_ else ".card")


def test_a_machine_and_its_last_day(site, page_at) -> None:
    made = network()
    page = page_at(site(made))
    go(page, f"machine/{made.rows[1]['peer_id']}")
    page.wait_for_selector("#machine-past:has-text('In 8 min: 2.1 open on average, 5 at most')")
    assert "it was away, or its server was, for 2 min (there 75 % of the time)" in page.text_content("#machine-past")
    assert page.locator("#machine-load canvas").count() == 1
    assert "2.1 open on average" in page.get_attribute("#machine-load", "aria-label")
    facts = page.text_content("#machine-facts")
    assert made.rows[1]["peer_id"] in facts
    assert "of 16 GiB free" in facts
    here = made.rows[1]["in_flight_here"]
    if here:
        page.wait_for_function("n => document.querySelectorAll('#machine-connections-rows tr').length === n", arg=here)


def test_an_owner_drains_another_machine_from_its_page(site, page_at) -> None:
    made = network()
    peer = made.rows[1]
    page = page_at(site(made))
    go(page, f"machine/{peer['peer_id']}")
    page.get_by_role("button", name="Drain …").click()
    assert page.text_content("#confirm-title") == f"Drain {peer['name']}?"
    assert axe_violations(page) == []
    page.click("#confirm button.primary")
    page.wait_for_selector("#machine-state-text:text-is('Draining')")
    page.get_by_role("button", name="Undrain …").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#machine-state-text:text-is('Online')")
    assert made.orders == [(peer["peer_id"], "drain"), (peer["peer_id"], "undrain")]


def test_without_the_owner_key_the_page_says_how(site, page_at) -> None:
    made = network()
    made.owner_here = False
    peer = made.rows[1]["peer_id"]
    page = page_at(site(made))
    go(page, f"machine/{peer}")
    page.wait_for_selector(f"#machine-command:has-text('federation drain --node {peer[-12:]} --owner-key FILE')")
    assert page.get_by_role("button", name="Drain …").count() == 0


def test_a_machine_is_banned_and_let_in(site, page_at) -> None:
    made = network()
    peer = made.rows[1]
    page = page_at(site(made))
    go(page, f"machine/{peer['peer_id']}")
    page.get_by_role("button", name="Ban …").click()
    page.click("#confirm button.primary")
    page.wait_for_selector("#machine-state-text:text-is('Banned')")
    go(page, "bans")
    page.wait_for_selector(f"#bans-rows th:text-is({peer['name']!r})")
    page.get_by_role("button", name=f"Let {peer['name']} in again").click()
    page.click("#confirm button.primary")
    page.wait_for_selector(f"#bans-rows th:text-is({peer['name']!r})", state="detached")


def test_connections_now(site, page_at) -> None:
    made = network()
    page = page_at(site(made))
    go(page, "connections")
    open_ = sum(row["in_flight_here"] for row in made.rows)
    page.wait_for_function("n => document.querySelectorAll('#connections-rows tr').length === n", arg=open_)
    first = page.locator("#connections-rows tr").first
    assert first.locator("td").all_text_contents()[:3] == ["open", "default", made.connections(1)["connections"][0]["name"]]
    assert f"{open_} clients of this machine's own ports" in page.text_content("#connections-note")
    first.locator("a").click()
    page.wait_for_selector("[data-view=machine]:not(.elsewhere)")


def test_the_log_is_the_owner_s_and_can_be_searched(site, page_at) -> None:
    made = network()
    url = site(made)
    page = page_at(url)
    go(page, "log")
    page.wait_for_function("() => document.querySelectorAll('#log-lines li').length === 31")
    made.log("a new line", name=ATTACK)
    page.wait_for_selector(f"#log-lines li:last-child:has-text({ATTACK!r})")
    page.fill("#log-filter", "192.0.2.7:29")
    assert page.locator("#log-lines li").count() == 1
    page.fill("#log-filter", "")
    page.select_option("#log-level", "warnings")
    assert page.locator("#log-lines li").count() == 1
    assert "does not answer" in page.text_content("#log-lines")
    other = page_at(url.partition("#")[0])
    go(other, "log")
    other.wait_for_selector("#log-note:has-text('federation dashboard')")
    assert other.locator("#log-lines li").count() == 0
    assert other.is_hidden("#log-tools")


def test_the_check_up_has_the_worst_first_and_what_to_do(site, page_at) -> None:
    made = network()
    page = page_at(site(made), permissions=["clipboard-read", "clipboard-write"])
    go(page, "checkup")
    page.wait_for_selector("#findings li >> nth=3")
    names = [re.sub(r" \(.*", "", text) for text in page.locator("#findings h3").all_text_contents()]
    assert names == ["backend", "draining", "open files", "token"]
    assert "1 thing wrong, 1 to look at" in page.text_content("#findings-note")
    codes = page.locator("#findings code").all_text_contents()
    assert codes == ["federation undrain", "ulimit -n 32768"]
    assert "started without --notify-url" in page.text_content("#notices-note")
    made.notify_to = "https://ntfy.sh/…"
    go(page, "")
    go(page, "checkup")
    page.wait_for_selector("#notices-note:has-text('To https://ntfy.sh/…; this node is the one that tells.')")
    page.click("#notices-test")
    page.click("#confirm button.primary")
    page.wait_for_selector("#notices-note:has-text('1 message so far')")


def test_this_browser_tells_of_a_death_once_and_of_a_return_once(site, page_at) -> None:
    page = page_at(site(network()))
    page.add_init_script(RECORD_NOTICES)
    page.reload()
    page.wait_for_selector(".card")
    go(page, "checkup")
    page.click("#alerts")
    page.wait_for_selector("#alerts:text-is('Stop telling me')")
    told = page.evaluate(
        """async () => {
          const { Alerts } = await import('/static/alerts.js');
          const alerts = new Alerts();
          const peer = (state) => [{ peer_id: 'a', name: 'bergen', state }, { peer_id: 'me', self: true, state: 'offline' }];
          const steps = [[0, 'online'], [1, 'unreachable'], [5, 'online'], [6, 'unreachable'], [25, 'offline'],
                         [26, 'offline'], [90, 'offline'], [100, 'online'],
                         [119, 'online'], [121, 'online'], [200, 'online'], [201, 'left']];
          for (const [at, state] of steps) alerts.look(at, peer(state));
          return window.notices;
        }"""
    )
    assert told == [["bergen does not answer", "a"], ["bergen is back", "a"]]
    page.click("#alerts")
    page.wait_for_selector("#alerts:text-is('Tell me in this browser')")


def test_the_last_24_hours(site, page_at) -> None:
    made = network(9)
    page = page_at(site(made))
    before = page.locator("#legend li").count()
    page.click("#spans >> text=24 h")
    page.wait_for_selector("#timeline-note:has-text('last 60 min')")
    page.wait_for_selector("#timeline[aria-label*='the last 24 hours']")
    legend: list[Any] = page.locator("#legend li").all_text_contents()
    assert len(legend) == 8 == before
    assert legend[-1].startswith("others")
    page.click("#spans >> text=5 min")
    page.wait_for_selector("#timeline[aria-label*='the last minutes']")
