"""The OpenAPI description of the control API, made from its operations and the shapes of schemas.py, so that it is true."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter
from starlette.responses import Response

from federation import __version__
from federation.api.routing import Routes
from federation.ops import schemas

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from federation.api.routing import Operation

_REF = "#/components/schemas/{model}"
_DESCRIPTION = """\
What a running federation node tells, and takes. On loopback, reading needs no key. What changes something or shows a secret
needs the control key (`control.key` in the node's state directory) as a bearer token, or a session of the dashboard; where
the API can be reached from other machines, everything does. By the socket in the state directory nothing does."""
_KEY = {"key": {"type": "http", "scheme": "bearer", "description": "control.key in the node's state directory"}}
_REFUSALS = {
    400: "The request is at fault.",
    401: "The control key is missing, or wrong.",
    403: "The request comes from another origin, or for another host; or a code is spent.",
    404: "There is no such thing here.",
    408: "The body did not come.",
    409: "It cannot be done now.",
    413: "The body is too large.",
    503: "Too many ask for this already.",
}


def describe(operations: Iterable[Operation]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    operations = list(operations)
    shapes = {shape for op in operations for shape in (op.answer, op.body) if shape is not None and not _is_response(shape)}
    inputs: list[tuple[Any, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (shape, "validation" if any(op.body is shape for op in operations) else "serialization", TypeAdapter(shape))
        for shape in sorted(shapes | {schemas.Problem, schemas.NetworkState}, key=lambda shape: shape.__name__)
    ]
    refs, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REF)
    by_shape = {shape: schema for (shape, _), schema in refs.items()}
    paths: dict[str, Any] = {}
    for op in operations:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op, by_shape)
    return {
        "openapi": "3.1.0",
        "info": {"title": "federation control API", "version": __version__, "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {}), "securitySchemes": _KEY},
    }


def routes(operations: Sequence[Operation]) -> Routes:
    """The description's own operation, which describes itself too."""
    routes = Routes()

    @cache
    def document() -> dict[str, Any]:
        return describe([*operations, *routes])

    @routes.get("/api/v1/openapi.json", dict)
    async def openapi(_node: object) -> dict[str, Any]:
        """This description."""
        return document()

    return routes


def _operation(op: Operation, by_shape: dict[type, Any]) -> dict[str, Any]:
    schema = {"type": "string"} if _is_response(op.answer) else by_shape[op.answer]
    responses: dict[str, Any] = {"200": {"description": op.summary, "content": {op.media_type: {"schema": schema}}}}
    problem = {"application/json": {"schema": by_shape[schemas.Problem]}}
    for status in _refusals(op):
        responses[str(status)] = {"description": _REFUSALS[status], "content": problem}
    described: dict[str, Any] = {
        "operationId": op.name,
        "summary": op.summary,
        "responses": responses,
        "security": [{"key": []}] if op.owner else [{}, {"key": []}],
    }
    if op.query is not None:
        described["parameters"] = _parameters(TypeAdapter(op.query).json_schema())
    if op.body is not None:
        is_required = any(field.is_required() for field in op.body.model_fields.values())
        described["requestBody"] = {"required": is_required, "content": {"application/json": {"schema": by_shape[op.body]}}}
    return described


def _refusals(op: Operation) -> list[int]:
    refusals = [401, 403]
    if op.query is not None or op.body is not None:
        refusals += [400, 404]
    if op.method == "POST":
        refusals.append(409)
    if op.body is not None:
        refusals += [408, 413]
    if op.media_type == "text/event-stream":
        refusals.append(503)
    return sorted(refusals)


def _parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": field.get("description", ""),
            "schema": _given(field),
        }
        for name, field in schema["properties"].items()
    ]


def _given(field: dict[str, Any]) -> dict[str, Any]:
    """A parameter is there or not; it is never null."""
    options = [option for option in field.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        return dict(options[0])
    return {key: value for key, value in field.items() if key not in ("title", "description")}


def _is_response(shape: type) -> bool:
    return isinstance(shape, type) and issubclass(shape, Response)
