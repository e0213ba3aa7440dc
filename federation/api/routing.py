"""The parts of a route: an operation has a path, the shape of its answer, and one function. JSON in and out.

    routes = Routes()

    @routes.get("/api/v1/explain", Explained, query=ExplainQuery)
    async def explain(node, query): ...

The function gets the node, then its declared arguments: `query` (a pydantic model), `body` (a Body), checked before it is
called; `request=True`: Starlette's request. It returns an `answer`. Its docstring's first line is the operation's
summary. `owner=True`: only for a client at the state directory's socket, or with the control key, or a dashboard's session.
A FederationError is an answer too: 400 where the request is at fault (UsageError), else 409; NotFound is 404.
"""

from __future__ import annotations

import inspect
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from federation.errors import FederationError, NotFound, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import Scope

H = TypeVar("H", bound="Callable[..., Awaitable[Any]]")

OWNER_ONLY = "this needs the control key (Authorization: Bearer KEY); it is in control.key in the node's state directory"


class Body(BaseModel):
    """A request's body. Strict: false is no number, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answer`: a TypedDict; or a Response class where the function makes its own response, which
    then is of `media_type`."""

    method: str
    path: str
    answer: type
    handler: Callable[..., Awaitable[Any]]
    query: type[BaseModel] | None = None
    body: type[Body] | None = None
    owner: bool = False
    request: bool = False
    media_type: str = "application/json"

    @property
    def summary(self) -> str:
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    @property
    def name(self) -> str:
        return self.handler.__name__


class Routes(list[Operation]):
    """The operations of one module."""

    def get(self, path: str, answer: type, **how: Any) -> Callable[[H], H]:
        return self._add("GET", path, answer, **how)

    def post(self, path: str, answer: type, **how: Any) -> Callable[[H], H]:
        return self._add("POST", path, answer, **how)

    def _add(self, method: str, path: str, answer: type, **how: Any) -> Callable[[H], H]:
        def add(handler: H) -> H:
            self.append(Operation(method, path, answer, handler, **how))
            return handler

        return add


def route(operation: Operation, node: object) -> Route:
    """The operation as Starlette's Route."""

    async def endpoint(request: Request) -> Response:
        if operation.owner and not is_owner(request.scope):
            raise HTTPException(401, OWNER_ONLY, {"WWW-Authenticate": "Bearer"})
        given: list[object] = []
        if operation.query is not None:
            given.append(_checked(operation.query, dict(request.query_params)))
        if operation.body is not None:
            given.append(_checked(operation.body, _parsed(await request.body())))
        if operation.request:
            given.append(request)
        try:
            answer = await operation.handler(node, *given)
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        except FederationError as error:
            raise HTTPException(400 if isinstance(error, UsageError) else 409, str(error)) from None
        return answer if isinstance(answer, Response) else json_response(answer)

    return Route(operation.path, endpoint, methods=[operation.method], name=operation.name)


def mark_owner(scope: Scope) -> None:
    """The request comes from the owner, who may do everything."""
    scope["federation.owner"] = True


def is_owner(scope: Scope) -> bool:
    return bool(scope.get("federation.owner"))


def json_response(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # ASCII, so that no name reaches a terminal raw; one line, as `--json` prints it.
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | (headers or {})
    return Response(to_json(content), status, headers, "application/json")


def to_json(content: object) -> str:
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content))


async def http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return json_response({"error": error.detail}, error.status_code, dict(error.headers or {}))


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None


def _checked(model: type[BaseModel], given: object) -> BaseModel:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(map(str, first["loc"])) or "the body"
        raise HTTPException(400, f"{name}: {first['msg']}") from None


def _finite(value: Any) -> Any:
    """JSON has no infinities (a peer never used was last used at minus infinity): null instead."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
