"""What a browser's profile still has of the dashboard when the browser is gone: nothing that opens it."""

from __future__ import annotations

import http.client
import json
import os
from typing import TYPE_CHECKING

from conftest import CHROMIUM, STEP_MS
from harness import federation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from fleet import Fleet
    from harness import Daemon
    from playwright.sync_api import Browser, Playwright


def post(daemon: Daemon, path: str, key: str = "", body: object = None) -> int:
    connection = http.client.HTTPConnection(*daemon.control, timeout=10)
    connection.request("POST", f"/api/v1/{path}", json.dumps(body), {"Authorization": f"Bearer {key}"} if key else {})
    with connection.getresponse() as answer:
        answer.read()
        connection.close()
        return answer.status


def files_with(profile: Path, text: str) -> list[str]:
    """In UTF-8 or UTF-16, as Chromium's files have either."""
    wanted = text.encode(), text.encode("utf-16-le")
    paths = (path for path in profile.rglob("*") if path.is_file())
    found = ((path, path.read_bytes()) for path in paths)
    return sorted(str(path.relative_to(profile)) for path, data in found if any(form in data for form in wanted))


def test_a_profile_has_no_way_back_in(
    fleet: Fleet, playwright: Playwright, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    daemon = fleet.daemon("remembered")
    key = (daemon.state_dir / "control.key").read_text().strip()
    url = federation("dashboard", "--state-dir", str(daemon.state_dir), home=fleet.directory).stdout.strip()
    profile = tmp_path / "profile"
    context = playwright.chromium.launch_persistent_context(
        profile, executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
    )
    page = context.new_page()
    page.set_default_timeout(STEP_MS)
    page.goto(url)
    page.wait_for_selector(".card")
    page.click("#add")
    page.wait_for_selector("#invite-command")
    session = page.evaluate("sessionStorage.getItem('federation.session')")
    page.close()
    context.close()
    code = url.partition("#code=")[2]
    assert files_with(profile, f"127.0.0.1:{daemon.control[1]}"), "nothing was kept at all: the search finds nothing"
    assert files_with(profile, key) == []
    kept = files_with(profile, session)
    record_property("figure: files of a Chromium profile with the key, the session", f"0, {len(kept)}")
    assert [name for name in kept if "History" in name or "Sessions" in name or "Favicons" in name] == []
    # The address is in the history, and opens nothing.
    assert post(daemon, "dashboard/session", body={"code": code}) == 403
    assert post(daemon, "drain", code) == 401
    # Where the tab's own storage stays on the disk, --revoke ends what is in it, and so does the daemon's end.
    federation("dashboard", "--revoke", "--state-dir", str(daemon.state_dir), home=fleet.directory)
    assert post(daemon, "drain", session) == 401


def test_the_file_for_the_browser_leads_to_the_page(fleet: Fleet, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """From file:, which for the daemon is another site that leads here."""
    daemon = fleet.daemon("opened")
    monkeypatch.setenv("BROWSER", "/bin/true %s")
    federation("dashboard", "--open", "--state-dir", str(daemon.state_dir), home=fleet.directory)
    page = browser.new_page()
    page.set_default_timeout(STEP_MS)
    page.goto((daemon.state_dir / "dashboard.html").as_uri())
    page.wait_for_selector(".card")
    page.click("#add")
    page.wait_for_selector("#invite-command")
    page.close()
