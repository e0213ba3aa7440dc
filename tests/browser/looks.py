"""Helpers for tests of the page: whether everybody can use it, whether it fits, what it copies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def axe_violations(page: Page) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [
        f"{v['id']} ({v['impact']}): {v['help']}: {v['nodes'][0]['html'][:200]}"
        for v in found
        if v["impact"] in ("serious", "critical")
    ]


def too_wide(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def copied(page: Page, what: str, board: str = "navigator.clipboard") -> str:
    """The clipboard after a click on the button."""
    page.evaluate(f"{board}.writeText('')")
    button = page.get_by_role("button", name=f"Copy {what}", exact=True)
    button.click()
    button.locator("text=Copied").wait_for()
    text: str = page.evaluate(f"{board}.readText()")
    return text
