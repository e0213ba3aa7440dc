"""Client keys, as people make, list and revoke them at a node."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import structlog

from federation.errors import NotDone
from federation.mesh.client_keys import MAX_NAME_CHARS, Statement, id_of, is_key_name, new_text
from federation.mesh.key_use import NOBODY, summed
from federation.mesh.models import is_name as is_model

if TYPE_CHECKING:
    from federation.mesh.key_use import Use
    from federation.ops import schemas
    from federation.ops.parts import Parts

log = structlog.get_logger(__name__)

_PER = {1: "s", 60: "m", 3600: "h", 86400: "d"}


@dataclass(frozen=True, slots=True)
class KeyWish:
    """`models`: empty is all; `lifetime_s`: None is for ever; `requests` in `seconds`: 0 is any number."""

    name: str
    models: tuple[str, ...] = ()
    lifetime_s: float | None = None
    requests: int = 0
    seconds: int = 0


async def keys(node: Parts) -> schemas.ClientKeys:
    """The valid keys, and their use at all entries that answer, since each started."""
    live, own = node.keys.table.live(node.keys.now_ms), node.client_keys.uses()
    heard = await node.key_use.ask() if live else NOBODY
    uses, here = summed([heard.uses.values(), own]), {use.key_id: use for use in own}
    asks = node.client_keys.asks
    return {
        "keys": [_row(node, key, uses.get(key.id), here.get(key.id)) for key in live],
        "asked_off_loopback": asks(on_loopback=False),
        "asked_on_loopback": asks(on_loopback=True),
        "entries": heard.asked + 1,
        "entries_counted": heard.answered + 1,
    }


async def add(node: Parts, wish: KeyWish) -> schemas.NewClientKey:
    """Make a key. Raises NotDone or StateDirUnusable."""
    name = wish.name.strip()
    if not is_key_name(name):
        raise NotDone(f"a key's name has 1 to {MAX_NAME_CHARS} printable characters")
    for model in wish.models:
        if not is_model(model):
            raise NotDone(f"{model!r} is no model's name")
    now_ms, text = node.keys.now_ms, new_text()
    expires_ms = 0 if wish.lifetime_s is None else now_ms + int(wish.lifetime_s * 1000)
    key = Statement(
        id_of(text), node.peer_id, now_ms, name,
        models=wish.models, expires_ms=expires_ms, requests=wish.requests, seconds=wish.seconds,
    )  # fmt: skip
    await node.keys.add(text, key)
    log.info("client key made", key=name)
    return {"key": text, **_row(node, key, None, None)}


async def revoke(node: Parts, name: str) -> schemas.ClientKeys:
    """Revoke the keys of that name. Raises NotFound or StateDirUnusable."""
    await node.keys.revoke(name.strip())
    log.info("client key revoked", key=name.strip())
    return await keys(node)


def _row(node: Parts, key: Statement, use: Use | None, here: Use | None) -> schemas.ClientKey:
    return {
        "name": key.name,
        "id": key.id.hex()[:8],
        "models": list(key.models),
        "made_at": _time(key.at_ms),
        "made_by": key.by,
        "made_by_name": node.facts.settings.name if key.by == node.peer_id else node.name_of(key.by),
        "expires_at": _time(key.expires_ms) if key.expires_ms else None,
        "rate": f"{key.requests}/{_PER.get(key.seconds, f'{key.seconds}s')}" if key.requests else None,
        "last_used": _time(use.last_ms) if use is not None and use.last_ms else None,
        "requests": 0 if use is None else use.requests,
        "requests_here": 0 if here is None else here.requests,
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="seconds")
