"""More shapes of the control API's answers, as schemas.py has them: history, orders to other nodes, notices of deaths."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from federation.ops.schemas import Bytes, Count, Seconds  # noqa: TC001  pydantic reads them

Order = Literal["drain", "undrain", "look"]
Series = Annotated[list[float | None], Field(description="a number a step, the oldest first; null: not known")]


class MachineLoad(TypedDict):
    peer_id: str
    name: str
    load: Annotated[Series, Field(description="connections that its backends served, on average")]


class MachineHistory(MachineLoad):
    """All that is kept of one machine."""

    well: Annotated[Series, Field(description="the part of the time in which it was there, and a server of it answered")]
    available_vram: Annotated[Series, Field(description="bytes, on average")]


class History(TypedDict):
    """The last 24 hours at most, as this node saw them since its start; kept in memory."""

    at: Annotated[int, Field(description="the beginning of the first step; seconds since 1970, UTC")]
    step_s: Annotated[int, Field(description="seconds a step; the last one is still being filled")]
    covers_s: Seconds
    memory: Annotated[Bytes, Field(description="what the numbers take in the node, in bytes")]
    open: Annotated[Series, Field(description="clients of this node's own ports, on average")]
    totals: Annotated[
        dict[str, Series], Field(description="the growth of each counter, a step; see `connections` of status")
    ]
    machines: Annotated[list[MachineLoad], Field(description="the busiest; none where one was asked for")]
    others: Annotated[Series | None, Field(description="the load of all others together; null: there are none")]
    machine: Annotated[
        MachineHistory | None, Field(description="the one that was asked for; null: never linked with this node")
    ]


class Ordered(TypedDict):
    """A node as it is behind an order to it, in its own words."""

    peer_id: str
    name: str
    draining: bool
    in_flight: Annotated[Count, Field(description="connections that its backends still serve")]
    clients: Annotated[Count, Field(description="clients of its own ports, without those between two HTTP requests")]


class PreparedOrder(TypedDict):
    """An order to another node, for the owner's key to sign; nothing has changed yet."""

    network: str
    owner: Annotated[str, Field(description="public half of the key that has to sign, hex")]
    peer_id: str
    name: str
    order: Annotated[str, Field(description="the bytes to sign, hex; see mesh/remote.py")]


class Notices(TypedDict):
    """This node's notices of machines that die and return (--notify-url)."""

    to: Annotated[str, Field(description="scheme and host; the rest of the address may be a secret. Empty: none is set")]
    tells: Annotated[bool, Field(description="this node is the one that tells; of several that could, one does")]
    told: Annotated[Count, Field(description="messages that arrived")]
    waiting: Annotated[Count, Field(description="events whose message did not arrive yet")]
    dropped: Annotated[Count, Field(description="events that nobody was told, since the address did not answer for long")]
    problem: Annotated[str, Field(description="why the last try failed; empty: it did not")]
