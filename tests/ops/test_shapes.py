"""What a node really says fits the shapes to the letter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from federation.ops import shapes
from tests.support.nodes import MakeNode, add

SHAPES = {name: shape for name, shape in vars(shapes).items() if is_typeddict(shape)}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_each_has_a_description(name: str) -> None:
    schema = TypeAdapter(SHAPES[name]).json_schema()
    assert set(schema.get("required", ())) == set(schema["properties"])


async def test_what_a_node_says_fits(make: MakeNode) -> None:
    node = make("one", notify_url="https://ntfy.sh/x")
    peer = add(node, "athens")
    said: list[tuple[Any, Any]] = [
        (shapes.History, node.operator.history(None)),
        (shapes.History, node.operator.history(peer)),
        (shapes.Notices, node.operator.notices()),
    ]
    for shape, answer in said:
        TypeAdapter(shape).validate_python(answer, strict=True)
