"""Operations without a server: what goes into a function, and what comes of what it returns or raises."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request

from federation.api.routing import Body, Routes, http_error, mark_owner, route
from federation.errors import FederationError, NotFound, UsageError


class Query(BaseModel):
    last: int = 3


class Named(Body):
    peer: str
    seconds: float = 1.0


async def call(routes: Routes, *, query: str = "", body: bytes = b"", owner: bool = False) -> tuple[int, Any]:
    (operation,) = routes
    app = Starlette(routes=[route(operation, "the node")], exception_handlers={HTTPException: http_error})
    scope: dict[str, Any] = {
        "type": "http", "method": operation.method, "path": operation.path, "headers": [], "query_string": query.encode(),
    }  # fmt: skip
    if owner:
        mark_owner(scope)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


async def test_a_function_gets_the_node_and_what_it_declared() -> None:
    routes = Routes()

    @routes.post("/x", dict, query=Query, body=Named)
    async def x(node: str, query: Query, body: Named) -> dict[str, Any]:
        """Does x.

        At length.
        """
        return {"node": node, "last": query.last, "peer": body.peer}

    assert await call(routes, query="last=7", body=b'{"peer": "a"}') == (200, {"node": "the node", "last": 7, "peer": "a"})
    assert (routes[0].summary, routes[0].name) == ("Does x.", "x")


@pytest.mark.parametrize(
    ("query", "body", "says"),
    [
        ("last=x", b'{"peer": "a"}', "last: Input should be a valid integer"),
        ("", b'{"peer": 1}', "peer: Input should be a valid string"),
        ("", b'{"peer": "a", "seconds": false}', "seconds: Input should be a valid number"),
        ("", b'{"peer": "a", "seconds": "1"}', "seconds: Input should be a valid number"),
        ("", b'{"peer": "a", "second": 1}', "second: Extra inputs are not permitted"),
        ("", b"", "peer: Field required"),
        ("", b"[]", "the body: Input should be"),
        ("", b"{", "the body is not JSON"),
        ("", b"\xff", "the body is not JSON"),
        ("", b"[" * 60_000, "the body is not JSON"),
    ],
)
async def test_what_does_not_fit_is_a_400_that_says_where(query: str, body: bytes, says: str) -> None:
    routes = Routes()

    @routes.post("/x", dict, query=Query, body=Named)
    async def x(_node: str, _query: Query, _body: Named) -> dict[str, Any]:
        raise AssertionError("it must not come here")

    status, answer = await call(routes, query=query, body=body)
    assert status == 400
    assert answer["error"].startswith(says)


@pytest.mark.parametrize(
    ("error", "status"), [(UsageError("u"), 400), (NotFound("peer x"), 404), (FederationError("f"), 409)]
)
async def test_our_errors_are_answers(error: FederationError, status: int) -> None:
    routes = Routes()

    @routes.get("/x", dict)
    async def x(_node: str) -> dict[str, Any]:
        raise error

    assert await call(routes) == (status, {"error": str(error)})


async def test_the_owner_s_are_the_owner_s() -> None:
    routes = Routes()

    @routes.get("/x", dict, owner=True)
    async def x(_node: str) -> dict[str, Any]:
        return {}

    assert (await call(routes))[0] == 401
    assert await call(routes, owner=True) == (200, {})


def test_a_request_is_nobody_s_until_it_is_marked() -> None:
    from federation.api.routing import is_owner

    scope: dict[str, Any] = Request({"type": "http"}).scope  # type: ignore[assignment]
    assert not is_owner(scope)
    mark_owner(scope)
    assert is_owner(scope)
