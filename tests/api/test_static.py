from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from starlette.applications import Starlette

from federation.api import static

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def app(tmp_path: Path) -> Starlette:
    (tmp_path / "vendor").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("let x;")
    (tmp_path / "vendor" / "chart.css").write_text("a {}")
    (tmp_path / "notes.py").write_text("nothing of the page's")
    return Starlette(routes=[*static.routes(tmp_path)])


async def get(app: Starlette, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": "GET", "path": path, "headers": raw, "query_string": b""}, receive, send)
    head = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], head, sent[1]["body"]


async def test_the_page_and_its_files(app: Starlette) -> None:
    for path, kind, body in (
        ("/", "text/html", b"<!doctype html>"),
        ("/static/app.js", "text/javascript", b"let x;"),
        ("/static/vendor/chart.css", "text/css", b"a {}"),
    ):
        status, headers, content = await get(app, path)
        assert (status, headers["content-type"].partition(";")[0], content) == (200, kind, body)
        assert static.is_page(path)


@pytest.mark.parametrize(
    "path", ["/static/notes.py", "/static/index.html", "/static/../control.py", "/static/", "/static/vendor", "/app.js"]
)
async def test_nothing_else(app: Starlette, path: str) -> None:
    assert (await get(app, path))[0] == 404


async def test_nothing_from_elsewhere_is_let_in(app: Starlette) -> None:
    _, headers, _ = await get(app, "/")
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_what_the_browser_has_is_not_sent_again(app: Starlette) -> None:
    _, headers, _ = await get(app, "/static/app.js")
    status, _, body = await get(app, "/static/app.js", if_none_match=headers["etag"])
    assert (status, body) == (304, b"")
    assert (await get(app, "/static/app.js", if_none_match='"other"'))[0] == 200


def test_without_a_dashboard_there_are_no_pages(tmp_path: Path) -> None:
    assert static.routes(tmp_path) == []
    assert not static.is_page("/api/v1/status")
