"""NodeData, a node's description of itself for all others, and its msgpack form.

Wire: one map with string keys. A key that is not known is ignored and one that is missing takes its default (defaults
are not sent), so that versions mix: a node that does not announce VRAM has none, the lowest tier. Everything has a
bound, and whatever the bytes, decoding raises RecordInvalid and nothing else.

`last_seen` does not travel: the receiver's clock decides when a node was seen, so no other node's wrong clock matters.
A record says how rarely its node renews it, which depends on the size of the network, and is valid for that much longer.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Annotated

import msgpack
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from federation.errors import RecordInvalid
from federation.net.wire import MAX_RECORD_BYTES

NODE_ONLINE_WINDOW = timedelta(seconds=40)  # eight announcements of 5 s: a few may be lost
ANNOUNCEMENTS_A_WINDOW = 2.5  # of nodes that announce so rarely that this is longer: two in a row are not lost on TCP
RAREST_ANNOUNCE_S = 1400  # whatever a record claims: with the window behind it, less than the ledger's FORGET_AFTER

# Strict, because the wire has real types: "1", 1.0 and true are not the number 1, and bytes are no text.
Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Flag = Annotated[bool, Field(strict=True)]
# Shown in terminals and logs: one line, no control characters.
Text = Annotated[str, Field(strict=True, max_length=64, pattern=r"^[^\p{Cc}\p{Zl}\p{Zp}]*$")]
MAX_COPIED = 8
PeerId = Annotated[str, Field(strict=True, min_length=1, max_length=128, pattern="^[!-~]+$")]
Address = Annotated[str, Field(strict=True, min_length=1, max_length=256, pattern="^[!-~]+$")]
Packed = Annotated[bytes, Field(strict=True)]  # bounded by the record; models.py packs and unpacks it


class Gpu(BaseModel):
    """One GPU; VRAM in bytes."""

    model_config = ConfigDict(frozen=True)

    name: Text
    total_vram: Count
    available_vram: Count


class NodeData(BaseModel):
    """A node's record. Newer is the higher (incarnation, seq): restarts raise the one, announcements the other."""

    model_config = ConfigDict(frozen=True)

    peer_id: PeerId
    name: Text = ""
    version: Text = ""
    incarnation: Count = 0
    seq: Count = 0
    last_seen: AwareDatetime  # UTC, by the clock of the node that holds this copy
    available_vram: Count = 0  # bytes
    total_vram: Count = 0  # bytes
    gpus: Annotated[tuple[Gpu, ...], Field(max_length=64)] = ()
    in_flight: Count = 0  # connections that its backends serve now
    capacity: Count = 0  # connections that it takes at once; 0: no limit
    services: Annotated[dict[Text, Flag], Field(max_length=64)] = {}  # name -> healthy
    http: Annotated[tuple[Text, ...], Field(max_length=64)] = ()  # its services that speak HTTP, as it knows or was told
    draining: Flag = False
    addresses: Annotated[tuple[Address, ...], Field(max_length=32)] = ()  # multiaddrs
    relays: Flag = False  # others can dial this node, and it relays for nodes that they cannot dial
    via: Annotated[tuple[PeerId, ...], Field(max_length=8)] = ()  # relays through which it is reached, best first
    owner: Flag = False  # claims to have the owner's key, so that people know where to rotate; gives no rights
    copied: Annotated[tuple[PeerId, ...], Field(max_length=MAX_COPIED)] = ()  # peers that this node met on two machines
    notifies: Flag = False  # it tells a person of machines that die: of several such nodes, one tells (alerts/notices.py)
    left: Flag = False  # a tombstone: the node left
    models: Packed = b""  # of its backends, by service; see models.py
    announce_every_s: Count = 0  # the next announcement comes by then; 0: often enough for NODE_ONLINE_WINDOW

    def is_online_at(self, now: datetime) -> bool:
        """Seen less than its window before `now`; at exactly the window it is offline."""
        age = now - self.last_seen
        return not self.left and (age < NODE_ONLINE_WINDOW or age < self.online_window)

    @property
    def online_window(self) -> timedelta:
        """NODE_ONLINE_WINDOW, unless the node announces more rarely than that allows."""
        every_s = min(self.announce_every_s, RAREST_ANNOUNCE_S)
        return max(NODE_ONLINE_WINDOW, timedelta(seconds=ANNOUNCEMENTS_A_WINDOW * every_s))

    def is_online(self) -> bool:
        return self.is_online_at(datetime.now(timezone.utc))

    def offers(self, service: str) -> bool:
        """Whether the node takes new connections for `service`, as far as it knows itself."""
        return self.services.get(service, False) and not self.draining and not self.left


def encode(record: NodeData) -> bytes:
    """The record's wire form. Raises RecordInvalid if it is larger than MAX_RECORD_BYTES."""
    data: bytes = msgpack.packb(record.model_dump(exclude={"last_seen"}, exclude_defaults=True))
    if len(data) > MAX_RECORD_BYTES:
        raise RecordInvalid(f"it has {len(data)} bytes, at most {MAX_RECORD_BYTES} are allowed")
    return data


def fitting(record: NodeData) -> NodeData:
    """The record, without its models if they make it too large: a node with 64 GPUs and 16 long names is announced too."""
    try:
        encode(record)
    except RecordInvalid:
        return record.model_copy(update={"models": b""})
    return record


def decode(data: bytes, *, received_at: datetime) -> NodeData:
    """Read a record and stamp it with `received_at`. Raises RecordInvalid, whatever the bytes."""
    if len(data) > MAX_RECORD_BYTES:
        raise RecordInvalid(f"it has {len(data)} bytes, at most {MAX_RECORD_BYTES} are allowed")
    try:
        fields = msgpack.unpackb(data)
    except ValueError:  # all of msgpack's complaints are ValueErrors; their texts repeat the sender's bytes
        raise RecordInvalid("not msgpack") from None
    if not isinstance(fields, dict):
        raise RecordInvalid("not a map")
    try:
        return NodeData.model_validate(fields | {"last_seen": received_at})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Only the field's own name: the rest of `loc` may be the sender's words.
        raise RecordInvalid(f"{first['loc'][0]}: {first['msg']}") from None
