"""The description against the operations and shapes that it is made from; Schemathesis holds a running daemon to it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from federation.api import access, diagnosis, events, localai, machines, openapi, routes
from federation.api.routing import Body, Operation

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB = events.Hub(cast("Any", None), lambda: datetime.now(timezone.utc))
ACCESS = access.routes(cast("Any", None), cast("Any", None))
OPERATIONS = [*routes.routes, *diagnosis.routes, *machines.routes, *ACCESS, *events.routes(HUB), *localai.routes]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.describe([*OPERATIONS, *openapi.routes(OPERATIONS)])


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from refs(item)


def test_each_operation_is_there_with_a_summary_and_its_own_name(document: dict[str, Any]) -> None:
    described = {(method.upper(), path): op for path, ops in document["paths"].items() for method, op in ops.items()}
    assert described.keys() == {(op.method, op.path) for op in OPERATIONS} | {("GET", "/api/v1/openapi.json")}
    assert all(op["summary"].endswith(".") for op in described.values())
    assert len({op["operationId"] for op in described.values()}) == len(described)


def test_no_reference_leads_nowhere(document: dict[str, Any]) -> None:
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(refs(document)) <= schemas
    json.dumps(document, allow_nan=False)


def test_the_owner_s_are_marked(document: dict[str, Any]) -> None:
    for op in OPERATIONS:
        security = document["paths"][op.path][op.method.lower()]["security"]
        assert security == ([{"key": []}] if op.owner else [{}, {"key": []}])


def test_parameters_and_body() -> None:
    class Query(BaseModel):
        last: int = Field(5, ge=1, description="how many")
        id: int | None = None
        name: str

    class Named(Body):
        peer: str

    class Optional(Body):
        peer: str = ""

    class Answer(TypedDict):
        done: bool

    async def act() -> None:
        """Do it."""

    described = openapi.describe([Operation("POST", "/act", Answer, act, query=Query, body=Named)])
    operation = described["paths"]["/act"]["post"]
    last, number, name = operation["parameters"]
    assert last["schema"] == {"default": 5, "minimum": 1, "type": "integer"}
    assert (last["description"], last["required"], name["required"]) == ("how many", False, True)
    assert number["schema"] == {"type": "integer"}
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Named"}
    assert operation["requestBody"]["required"] is True
    optional = openapi.describe([Operation("POST", "/act", Answer, act, body=Optional)])
    assert optional["paths"]["/act"]["post"]["requestBody"]["required"] is False
    assert {"200", "400", "401", "403", "404", "408", "409", "413"} == operation["responses"].keys()
    assert described["components"]["schemas"]["Answer"]["required"] == ["done"]


async def test_it_is_served_and_made_once() -> None:
    (operation,) = openapi.routes(OPERATIONS)
    first = await operation.handler(None)
    assert first["openapi"] == "3.1.0"
    assert await operation.handler(None) is first
