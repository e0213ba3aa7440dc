"""Makes the documentation's pictures, from a made-up network: `scripts/browser --pictures`."""

from __future__ import annotations

import io
import math
import random
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from fake_network import GIB, FakeNetwork

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

NAMES = ["athens", "bergen", "cusco", "dakar", "essen", "fargo"]
SECONDS = 290


def lived_in() -> tuple[FakeNetwork, list[dict[str, Any]]]:
    """A network after some minutes of traffic, and its states of then."""
    made = FakeNetwork(6, names=NAMES)
    made.rows[5]["total_vram"] = made.rows[5]["available_vram"] = 0
    made.started -= timedelta(hours=31)
    made.random = random.Random(7)
    begun = time.time() - SECONDS
    past = []
    for t in range(SECONDS):
        made.step(t + 40, calm=0.55 + 0.25 * math.sin(t / 40))
        if t == 180:
            made.set_state("essen", "offline")
        past.append({"at": begun + t, "status": made.status(), "peers": made.peers(), "rates": made.status()["rates"]})
    figures = [(1204, 0.31, 38.2), (312, 1.4, 14.6), (88, 0.19, 71.0)]
    models = [("gemma3:27b", 17, ("athens", "cusco"), ("dakar",)), ("llama3.3:70b", 43, ("cusco",), ())]
    models.append(("qwen3:8b", 5, ("dakar",), ("athens", "bergen")))
    for (name, size, warm, cold), (requests, first_s, pace) in zip(models, figures, strict=True):
        how = {"requests": requests, "first_token_s": first_s, "tokens_per_s": pace}
        made.add_model(name, warm, cold, size * GIB, **how)
    return made, past


def save(page: Page, path: Path) -> None:
    """As a PNG of 256 colours: a quarter of the bytes, and no eye sees it."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def test_pictures(site, page_at, pictures: Path | None) -> None:
    if pictures is None:
        pytest.skip("only scripts/browser --pictures makes them")
    pictures.mkdir(parents=True, exist_ok=True)
    made, past = lived_in()
    for theme in ("light", "dark"):
        page = page_at(site(made, past), theme=theme)
        page.set_viewport_size({"width": 1280, "height": 1480})
        page.wait_for_selector("#models-rows tr")
        page.wait_for_selector(".decisions li")
        save(page, pictures / f"dashboard-{theme}.png")
    page = page_at(site(made, past))  # each address opens one page
    page.click("#add")
    page.wait_for_selector(".qr")
    save(page, pictures / "dashboard-add.png")
    page = page_at(site(made, past), 360, "dark")
    save(page, pictures / "dashboard-phone.png")
