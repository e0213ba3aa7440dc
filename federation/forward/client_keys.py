"""Client keys at an entry: each request is judged by its head, before anything is picked. mesh/client_keys.py has the keys.

    Authorization: Bearer fedk_...      as OpenAI's clients send it, and Ollama's
    x-api-key: fedk_...                 Anthropic's
    api-key: fedk_...                   Azure's

Rule 1: a port asks for a key if --require-key says so, or if the network has ever had a key and the port is off loopback
(--no-require-key: never). Rule 2: a request that shows a key of ours is judged by it, on any port: a wrong one gets 401.
Rule 3: a key of ours goes no further than this entry. What is no key of ours is the backend's affair, and passes.
Rule 4: a rate is kept here, by this entry alone: a client that uses several entries has it at each.
"""

from __future__ import annotations

import re
from math import ceil
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import structlog

from federation.mesh.client_keys import PREFIX
from federation.mesh.key_use import Use
from federation.mesh.models import is_called
from federation.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    from federation.forward.http.head import RequestHead
    from federation.mesh.client_keys import KeyTable, Statement
    from federation.mesh.models import Catalog

    Why = Literal["missing", "wrong", "expired", "revoked", "model", "rate"]

log = structlog.get_logger(__name__)

LINES_A_SECOND, LINES_AT_ONCE = 1.0, 20.0  # of the log: strangers try keys without end
CHALLENGE = b'WWW-Authenticate: Bearer realm="federation"\r\n'
_FIELDS = frozenset((b"authorization", b"x-api-key", b"api-key"))
# Whatever the scheme, and whatever stands around it: a key with more around it is no key, but goes no further either.
_OURS = re.compile(rb'(?:[a-z]+[ \t]+)?"?(' + PREFIX.encode() + rb".*)", re.IGNORECASE)
# Ollama's and LocalAI's: they make, change or remove models, with names of their own besides the one that a key covers.
_MANAGING = re.compile(
    r"(?:/[^/?]+)?(?:/api)+/(?:pull|push|create|copy|delete|blobs)(?:[/?]|$)"
    r"|(?:/v1)*/models/(?:apply|delete|edit|import|reload|toggle)(?:[/?]|$)"
)


class Refusal(NamedTuple):
    """An answer of the entry's own. `more`: whole lines for its head."""

    status: int
    why: str
    code: str | None = None
    retry_after_s: int | None = None
    more: bytes = b""


class Grant(NamedTuple):
    """The rights that a request has by its key."""

    key: Statement

    @property
    def name(self) -> str:
        return self.key.name

    def covers(self, model: str) -> bool:
        """By the most liberal server's rule of names, which is Ollama's."""
        return not self.key.models or any(is_called(known, model, "ollama") for known in self.key.models)

    def refusal(self, target: str, model: str) -> str | None:
        """Why the key does not cover this request; None if it does. A request that names no model could reach any."""
        if not self.key.models:
            return None
        if _MANAGING.match(unquote(target)):
            return f"the key {self.name!r} is for the use of some models, and manages none"
        if self.covers(model):
            return None
        asked = f"not for {model}" if model else "and the request names none"
        return f"the key {self.name!r} is for {', '.join(self.key.models)}, {asked}"

    def catalogs(self, catalogs: Iterable[Catalog]) -> list[Catalog]:
        """Leave out the models that the key does not cover."""
        if not self.key.models:
            return list(catalogs)
        return [c._replace(models=tuple(model for model in c.models if self.covers(model.name))) for c in catalogs]


class _Count:
    """Requests that showed one key at this entry, since it started. `last_ms`: since 1970, UTC."""

    __slots__ = ("bucket", "last_ms", "requests")

    def __init__(self, key: Statement) -> None:
        self.requests = 0
        self.last_ms = 0
        self.bucket = Bucket(key.requests / key.seconds, key.requests) if key.requests else None


class ClientKeys:
    """Judges requests by the keys in `table`. `require`: --require-key, None if not given. `now`: a monotonic clock."""

    def __init__(
        self, table: KeyTable, *, now: Callable[[], float], now_ms: Callable[[], int], require: bool | None = None
    ) -> None:
        self.require = require
        self.refused: dict[str, int] = {}
        self._table = table
        self._now = now
        self._now_ms = now_ms
        self._counts: dict[bytes, _Count] = {}
        self._lines = Bucket(LINES_A_SECOND, LINES_AT_ONCE)

    def asks(self, *, on_loopback: bool) -> bool:
        """Whether a port asks for a key. Keys that were revoked or expired count: the last one's end opens no port."""
        return len(self._table) > 0 and not on_loopback if self.require is None else self.require

    def judge(self, head: RequestHead, *, on_loopback: bool, client: str = "") -> Grant | Refusal | None:
        """None: the request shows no key, and needs none. `client`: for the log."""
        judged = self._judged(head, on_loopback=on_loopback)
        if isinstance(judged, Refusal) and self._lines.take(self._now()):
            log.info("request refused", client=client, why=judged.why)
        return judged

    def _judged(self, head: RequestHead, *, on_loopback: bool) -> Grant | Refusal | None:
        shown = [match[1] for key, _, value in head.fields if key in _FIELDS and (match := _OURS.fullmatch(value))]
        if not shown:
            if self.asks(on_loopback=on_loopback):
                return self._refuse(
                    "missing",
                    401,
                    "this port asks for a client key: Authorization: Bearer KEY; `federation key add` makes one",
                )
            return None
        key = self._table.find(shown[0].decode("latin-1")) if len(set(shown)) == 1 else None
        now_ms = self._now_ms()
        if key is None:
            return self._refuse("wrong", 401, "no such client key")
        if key.is_revoked:
            return self._refuse("revoked", 401, f"the client key {key.name!r} was revoked")
        if not key.is_live(now_ms):
            return self._refuse("expired", 401, f"the client key {key.name!r} has expired")
        count = self._counts.get(key.id)
        if count is None:
            count = self._counts[key.id] = _Count(key)
        if count.bucket is not None and not count.bucket.take(self._now()):
            wait_s = ceil((1 - count.bucket.left(self._now())) / count.bucket.rate)
            why = f"the client key {key.name!r} has {key.requests} requests in {key.seconds} s at this entry"
            return self._refuse("rate", 429, why, retry_after_s=max(1, wait_s))
        count.requests += 1
        count.last_ms = now_ms
        return Grant(key)

    def not_covered(self, why: str) -> Refusal:
        return self._refuse("model", 403, why)

    def uses(self) -> list[Use]:
        """Of the keys that were used at this entry."""
        return [Use(key_id, count.requests, count.last_ms) for key_id, count in self._counts.items()]

    def requests_by_name(self) -> dict[str, int]:
        """Of valid keys that were used at this entry."""
        found: dict[str, int] = {}
        for key in self._table.live(self._now_ms()):
            if (count := self._counts.get(key.id)) is not None:
                found[key.name] = found.get(key.name, 0) + count.requests
        return found

    def changed(self) -> None:
        """Forget the use of keys that are no longer valid."""
        live = {key.id for key in self._table.live(self._now_ms())}
        self._counts = {key_id: count for key_id, count in self._counts.items() if key_id in live}

    def _refuse(self, kind: Why, status: int, why: str, *, retry_after_s: int | None = None) -> Refusal:
        self.refused[kind] = self.refused.get(kind, 0) + 1
        more = CHALLENGE if status == 401 else b""
        return Refusal(status, why, retry_after_s=retry_after_s, more=more)


def fields_with_keys(head: RequestHead) -> frozenset[bytes]:
    """The lower-case names of fields with a key of ours, which no backend is to see."""
    return frozenset(key for key, _, value in head.fields if key in _FIELDS and _OURS.fullmatch(value))
