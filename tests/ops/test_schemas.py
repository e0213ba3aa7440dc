"""The shapes of the API's answers: each has a description, and what a node really says fits them to the letter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from federation.ops import schemas
from tests.support.nodes import MakeNode, running

SHAPES = {name: shape for name, shape in vars(schemas).items() if is_typeddict(shape)}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_each_has_a_description(name: str) -> None:
    schema = TypeAdapter(SHAPES[name]).json_schema()
    assert schema["properties"]
    assert set(schema.get("required", ())) <= set(schema["properties"])


async def test_what_a_node_says_fits(make: MakeNode) -> None:
    async with running(make("one", backends=("127.0.0.1:1",))) as run:
        node = run.node
        said: list[tuple[Any, Any]] = [
            (schemas.Status, node.operator.status()),
            (list[schemas.Peer], node.operator.peers()),
            (list[schemas.Decision], node.operator.explain(10)),
            (schemas.OpenConnections, node.operator.connections(10)),
            (schemas.Invite, node.operator.invite()),
            (schemas.Banned, node.operator.banned()),
            (schemas.Draining, node.operator.drain_status()),
        ]
        for shape, answer in said:
            TypeAdapter(shape).validate_python(answer, strict=True)
        with pytest.raises(ValidationError):
            TypeAdapter(schemas.Status).validate_python({**node.operator.status(), "node": {}}, strict=True)
