"""LocalAI's read paths, with its field names, so that scripts written for its p2p mode keep working.

Its federated nodes are here the nodes that offer a service. Of its workers, which share one model's layers, there are none.
`tunnelAddress` is where a client on this machine gets that service: this node's own port, behind which the policy picks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from typing_extensions import TypedDict

from federation.api.routing import Routes

if TYPE_CHECKING:
    from federation.api.routes import ControlledNode
    from federation.ops import schemas

routes = Routes()


class NodeData(TypedDict):
    """A node as `GET /api/p2p` has it."""

    Name: str
    ID: str
    TunnelAddress: str
    ServiceID: str
    LastSeen: str


class NodeStatus(TypedDict):
    """A node as the other paths have it."""

    name: str
    id: str
    tunnelAddress: str
    serviceID: str
    lastSeen: str
    isOnline: bool


class AllNodes(TypedDict):
    nodes: list[NodeData]
    llama_cpp_nodes: list[NodeData]
    mlx_nodes: list[NodeData]
    federated_nodes: list[NodeData]


class Nodes(TypedDict):
    nodes: list[NodeStatus]


class OnlineOfTotal(TypedDict):
    online: int
    total: int


class Stats(TypedDict):
    workers: OnlineOfTotal
    llama_cpp_workers: OnlineOfTotal
    mlx_workers: OnlineOfTotal
    federated: OnlineOfTotal


@routes.get("/api/p2p", AllNodes)
async def p2p_nodes(node: ControlledNode) -> AllNodes:
    """Answer with the nodes of each of LocalAI's kinds: here all are federated ones."""
    federated: list[NodeData] = [
        {
            "Name": row["name"],
            "ID": row["id"],
            "TunnelAddress": row["tunnelAddress"],
            "ServiceID": row["serviceID"],
            "LastSeen": row["lastSeen"],
        }
        for row in _federated(node)
    ]
    return {"nodes": [], "llama_cpp_nodes": [], "mlx_nodes": [], "federated_nodes": federated}


@routes.get("/api/p2p/federation", Nodes)
async def p2p_federation(node: ControlledNode) -> Nodes:
    """Answer with the nodes that offer a service, as LocalAI does."""
    return {"nodes": _federated(node)}


@routes.get("/api/p2p/workers", Nodes)
async def p2p_workers(_node: ControlledNode) -> Nodes:
    """Answer with LocalAI's workers, of which a federation has none."""
    return {"nodes": []}


@routes.get("/api/p2p/stats", Stats)
async def p2p_stats(node: ControlledNode) -> Stats:
    """Answer with the number of nodes, and of those that are online, as LocalAI does."""
    rows = _federated(node)
    none: OnlineOfTotal = {"online": 0, "total": 0}
    federated: OnlineOfTotal = {"online": sum(row["isOnline"] for row in rows), "total": len(rows)}
    return {"workers": none, "llama_cpp_workers": none, "mlx_workers": none, "federated": federated}


@routes.get("/api/p2p/token", Response, owner=True, media_type="text/plain")
async def p2p_token(node: ControlledNode) -> Response:
    """Answer with the network's token and nothing else, as LocalAI does, but only for the owner."""
    return Response(node.invite()["token"], headers={"Cache-Control": "no-store"}, media_type="text/plain")


def _federated(node: ControlledNode) -> list[NodeStatus]:
    listens = node.status()["node"]["listens"]
    return [_row(peer, listens) for peer in node.peers() if peer["services"] and peer["state"] != "left"]


def _row(peer: schemas.Peer, listens: dict[str, str]) -> NodeStatus:
    services = sorted(peer["services"])
    service = next((service for service in services if service in listens), services[0])
    return {
        "name": peer["name"],
        "id": peer["peer_id"],
        "tunnelAddress": listens.get(service, ""),
        "serviceID": service,
        "lastSeen": peer["last_seen"],
        "isOnline": peer["online"],
    }
