"""The shapes of the control API's answers, from which its OpenAPI description is made.

Typed dictionaries, not pydantic models: mypy holds status.py to them, key by key, and building an answer costs no more than
building a dict. A key that is new in an answer is added here; the descriptions are for readers of the API's description.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

Bytes = Annotated[int, Field(ge=0, description="bytes")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(description="seconds")]
UtcTime = Annotated[str, Field(description="ISO 8601, UTC")]
Services = Annotated[dict[str, bool], Field(description="service -> whether a backend of it answers")]
State = Literal["online", "draining", "no backend", "backend down", "suspect", "unreachable", "offline", "left", "banned"]
ClientState = Literal["idle", "waiting", "opening", "open", "turned away"]
Path = Literal["self", "direct", "punched", "relayed", "none"]


class Gpu(TypedDict):
    source: Annotated[str, Field(description="where the numbers come from: nvidia, amd, apple, fixed, none")]
    note: str
    total_vram: Bytes
    available_vram: Bytes


class Relaying(TypedDict):
    """This node's relaying for members that others cannot dial."""

    places: Annotated[Count, Field(description="members that are reached through this node")]
    circuits: Annotated[Count, Field(description="connections between members that it relays now")]
    bytes: Annotated[Count, Field(description="relayed since its start, both directions")]


class Listener(TypedDict):
    service: str
    address: str
    scheme: Annotated[
        Literal["http", "https", "tcp"], Field(description="https: it speaks TLS; tcp: it is said to be for no HTTP")
    ]
    names: Annotated[list[str], Field(description="https: the names and addresses that its certificate is for")]
    asks_key: Annotated[bool, Field(description="its clients need a key")]


class ThisNode(TypedDict):
    peer_id: str
    name: str
    version: str
    addresses: list[str]
    listens: Annotated[dict[str, str], Field(description="service -> where clients connect; the first address of several")]
    listeners: Annotated[list[Listener], Field(description="all addresses where clients connect")]
    p2p: str
    control: str
    services: Services
    gpu: Gpu
    in_flight: Annotated[Count, Field(description="connections that this node's backends serve, for all entries")]
    draining: bool
    dialable: Annotated[bool | None, Field(description="by members of other networks than its own; null: none has tried")]
    via: Annotated[list[str], Field(description="relays through which others reach this node")]
    relay: Annotated[Relaying | None, Field(description="null: it does not relay")]
    uptime_s: Seconds
    tasks: Annotated[Count, Field(description="what the daemon does at a time, without its clients' connections")]
    state_dir: str
    pid: int


class ServiceNodes(TypedDict):
    """How many nodes within reach offer a service, and how many of them take connections for it now."""

    nodes: Count
    up: Count


class Network(TypedDict):
    id: str
    name: str
    peers_online: Count
    peers_known: Count
    paths: Annotated[dict[str, Count], Field(description="this node's links: how many are direct, punched, relayed")]
    services: Annotated[
        dict[str, ServiceNodes], Field(description="by name: what is offered, and what clients here may ask for")
    ]
    invite_addresses: list[str]
    rotations: Annotated[Count, Field(description="how often its token was rotated")]
    former_until: Annotated[UtcTime | None, Field(description="until when the former token admits")]
    owner: Annotated[str, Field(description="public half of the key that may rotate the token, hex; empty: nobody may")]
    owner_here: Annotated[bool, Field(description="whether this node has the private half")]
    owner_at: Annotated[list[str], Field(description="other nodes that say they have it: name and id")]


class Connections(TypedDict):
    now: Count
    total: Count
    failed: Annotated[Count, Field(description="clients that were turned away")]
    retried: Count
    received: Annotated[Bytes, Field(description="from clients to backends, open connections included")]
    delivered: Annotated[Bytes, Field(description="from backends to clients, likewise")]


class Rates(TypedDict):
    """The rates of this entry's clients, per second, over the last ten seconds."""

    connections_per_s: Annotated[float, Field(ge=0)]
    failed_per_s: Annotated[float, Field(ge=0)]
    retried_per_s: Annotated[float, Field(ge=0)]
    received_per_s: Annotated[float, Field(ge=0, description="bytes")]
    delivered_per_s: Annotated[float, Field(ge=0, description="bytes")]
    bytes_per_s: Annotated[float, Field(ge=0, description="both directions together")]


class Status(TypedDict):
    """The state of this node."""

    node: ThisNode
    network: Network
    connections: Connections
    rates: Rates
    warnings: list[str]


class PeerGpu(TypedDict):
    name: str
    total_vram: Bytes
    available_vram: Bytes


class Peer(TypedDict):
    """A node of the network, as this one knows it."""

    peer_id: str
    name: str
    self: bool
    online: bool
    state: State
    last_seen: UtcTime
    last_seen_age_s: Seconds
    available_vram: Bytes
    total_vram: Bytes
    gpus: list[PeerGpu]
    in_flight: Annotated[Count, Field(description="connections that its backends serve, as it last said")]
    in_flight_here: Annotated[Count, Field(description="those of them that this entry holds")]
    served: Annotated[Count, Field(description="connections that this entry gave it, retried ones included")]
    capacity: Annotated[Count, Field(description="0: no limit")]
    services: Services
    draining: bool
    path: Path
    via: Annotated[str, Field(description="the relay of a relayed path, else empty")]
    rtt_ms: Annotated[float, Field(description="milliseconds")] | None
    version: str
    addresses: list[str]


class Peers(TypedDict):
    """All nodes of the network, this one first."""

    peers: list[Peer]


class ModelPlace(TypedDict):
    """A node that has the model."""

    peer_id: str
    name: str
    state: State
    service: str
    kind: Annotated[str, Field(description="which server it is: ollama, llama.cpp, ...")]
    warm: Annotated[bool, Field(description="in memory: its first token does not wait for a load")]
    size: Annotated[int, Field(ge=0, description="bytes, in whole MiB; 0: the server does not say")]
    slots: Annotated[Count, Field(description="requests that the server computes at once; 0: unknown")]
    in_flight: Annotated[Count, Field(description="connections that the node's backends serve, whatever the model")]


class Model(TypedDict):
    name: str
    size: Annotated[int, Field(ge=0, description="bytes, the largest of its places; 0: unknown")]
    requests: Annotated[Count, Field(description="of this entry's clients that are over, however they ended")]
    first_token_s: Annotated[
        float | None,
        Field(description="seconds until the first content of an answer, median of the newest streams here; null: none yet"),
    ]
    tokens_per_s: Annotated[
        float | None, Field(description="behind the first one, median of the newest streams here that told their tokens")
    ]
    places: Annotated[list[ModelPlace], Field(description="warm ones first, then the least busy")]


class NamedPeer(TypedDict):
    peer_id: str
    name: str


class Models(TypedDict):
    """The models of all nodes that can be reached, as these nodes said last. No node is asked for this answer."""

    models: Annotated[list[Model], Field(description="by name")]
    incomplete: Annotated[list[NamedPeer], Field(description="nodes that have more models than their records carry")]
    silent: Annotated[
        list[NamedPeer],
        Field(
            description="nodes that offer a service and tell no models: of an older version, "
            "or their server does not list any"
        ),
    ]


class SeenBy(TypedDict):
    """How a member of another network than this node's sees it."""

    peer_id: str
    name: str
    host: str
    port: Annotated[int | None, Field(description="that a NAT gives to the port where this node listens; null: not shown")]


class Mapping(TypedDict):
    """A port of the router that leads to this node."""

    asked: Annotated[bool, Field(description="whether --port-mapping is on")]
    way: Annotated[str, Field(description="that the router answered: NAT-PMP, UPnP; empty if none")]
    port: int | None
    problem: str


class Relay(TypedDict):
    peer_id: str
    name: str
    rtt_ms: Annotated[float, Field(description="milliseconds")] | None
    used: Annotated[bool, Field(description="others reach this node through it")]


class Netcheck(TypedDict):
    """How other machines can reach this one."""

    nat: Annotated[
        Literal["none", "easy", "hard", "some", "unknown"],
        Field(description="easy: one address for all outsiders; hard: another one for each; some: too few have told"),
    ]
    seen: list[SeenBy]
    dialable: Annotated[bool | None, Field(description="by members of other networks than its own; null: none has tried")]
    mapping: Mapping
    relays: Annotated[list[Relay], Field(description="members that relay for others, those in use and the nearest first")]
    addresses: list[str]
    ipv6: Annotated[list[str], Field(description="this machine's addresses of the world")]
    ipv6_links: Count
    links: Count


class PlacementNode(TypedDict):
    peer_id: str
    name: str
    state: State
    fits: bool
    why: Annotated[str, Field(description="why it is where it is in the order, or why it does not fit")]
    model: Annotated[
        Literal["warm", "cold", "no", "unknown"], Field(description="whether it has the model that was asked for")
    ]
    available_vram: Bytes
    total_vram: Bytes
    in_flight: Count
    last_used_age_s: Seconds | None


class Placement(TypedDict):
    """Where to run something: the nodes in order of preference."""

    needed_vram: Bytes
    best: Annotated[PlacementNode | None, Field(description="the first one that fits")]
    nodes: list[PlacementNode]


class Candidate(TypedDict):
    peer_id: str
    name: str
    in_flight: Count
    last_used_age_s: Seconds | None
    available_vram: Bytes
    served: Count
    far: Annotated[bool, Field(description="its path is slower than the nearest one's by more than --path-penalty")]
    path: Annotated[Path, Field(description="its link as it is now, not at the pick")]
    rtt_ms: Annotated[float, Field(description="milliseconds, likewise")] | None


class Tokens(TypedDict):
    """Counts as the answer says them; null where it does not."""

    taken: Annotated[Count | None, Field(description="of the prompt")]
    made: Annotated[Count | None, Field(description="generated")]
    cached: Annotated[Count | None, Field(description="of the prompt, those that the server found in its cache")]


class Answer(TypedDict):
    """The end of one HTTP request."""

    status: Annotated[Count, Field(description="0 where no answer was begun")]
    queued_s: Annotated[float, Field(description="seconds in which no peer could take it")]
    first_s: Annotated[float | None, Field(description="seconds until the first content; null where it is not read")]
    is_stream: bool
    tokens: Tokens | None


class Keyed(TypedDict, total=False):
    """What a client with a key had."""

    key: Annotated[str, Field(description="the name of the client's key, where it showed one")]


class Ended(Keyed):
    peer_id: Annotated[str, Field(description="empty where nobody had it at the end")]
    seconds: Seconds
    received: Annotated[Bytes, Field(description="bytes from the client")]
    delivered: Annotated[Bytes, Field(description="bytes to the client")]
    error: str | None
    answer: Annotated[Answer | None, Field(description="null for a connection of layer 4")]


class SentBack(TypedDict):
    """The peer had more connections than the entry believed, or is full, and left the request to it: it picked again."""

    had: Annotated[Count | None, Field(description="null where it takes no more at all for now")]
    believed: Count


class Decision(TypedDict):
    """One pick of a peer."""

    id: Annotated[int, Field(ge=1, description="the connection's number at this entry")]
    request: Annotated[int, Field(ge=1, description="the request's number on that connection")]
    at: UtcTime
    service: str
    model: Annotated[str, Field(description="empty where none was named")]
    client: str
    attempt: Annotated[int, Field(ge=1)]
    chosen: Annotated[str, Field(description="peer id")]
    name: str
    tier: Annotated[str, Field(description="the first tier in which the chosen is ahead of the runner-up")]
    loads: Annotated[bool, Field(description="the model was on disk only at the chosen one, which loads it")]
    failed: Annotated[str | None, Field(description="why this attempt came to nothing")]
    sent_back: Annotated[SentBack | None, Field(description="why the entry picked again, which is no failure")]
    ended: Annotated[Ended | None, Field(description="how the connection ended; null while it is open")]
    candidates: list[Candidate]


class TurnedAway(Keyed):
    """A connection that no peer had at its end."""

    id: Annotated[int, Field(ge=1, description="the connection's number at this entry")]
    request: Annotated[int, Field(ge=1, description="the request's number on that connection")]
    at: Annotated[UtcTime, Field(description="when it ended; ISO 8601, UTC")]
    service: str
    model: Annotated[str, Field(description="empty where none was named")]
    client: str
    attempts: Count
    seconds: Seconds
    why: str


class ClientKey(TypedDict):
    """A key that clients show to entries; the key itself is told once, to the person who made it."""

    name: str
    id: Annotated[str, Field(description="the beginning of the key's hash")]
    models: Annotated[list[str], Field(description="the models that it is for; none: all")]
    made_at: UtcTime
    made_by: Annotated[str, Field(description="peer id of the node where a person made it")]
    made_by_name: str
    expires_at: Annotated[str | None, Field(description="ISO 8601, UTC")]
    rate: Annotated[str | None, Field(description="requests in a time, at each entry: 60/m")]
    last_used: Annotated[str | None, Field(description="at any entry that was counted, since that one started")]
    requests: Annotated[int, Field(ge=0, description="at all of these; those over the key's rate are not in it")]
    requests_here: Annotated[int, Field(ge=0, description="at this entry alone")]


class NewClientKey(ClientKey):
    """A key that was just made."""

    key: Annotated[str, Field(description="the key; it is told this once")]


class ClientKeys(TypedDict):
    """The network's valid client keys, by name."""

    keys: list[ClientKey]
    asked_off_loopback: Annotated[bool, Field(description="ports that other machines reach ask for a key, but tcp:// ones")]
    asked_on_loopback: Annotated[bool, Field(description="ports on loopback ask for a key, but tcp:// ones")]
    entries: Annotated[int, Field(ge=1, description="this node, and those that it is linked with; 1 where there is no key")]
    entries_counted: Annotated[int, Field(ge=1, description="those of them whose use is in `requests` and `last_used`")]


class UseText(TypedDict):
    title: Annotated[str, Field(description="which way to use it this is; empty for the first one")]
    text: Annotated[str, Field(description="to paste or to run, with YOUR_KEY where the key has to be")]


class UseClient(TypedDict):
    """A program's configuration for this node."""

    name: Annotated[str, Field(description="as `federation use` takes it")]
    title: str
    texts: list[UseText]
    file: Annotated[str | None, Field(description="where --write puts it, in a home or in federation's own directory")]
    note: str
    reads: Annotated[str, Field(description="the document that tells this form")]


class Use(TypedDict):
    """How clients are told of this node."""

    services: Annotated[list[str], Field(description="those that have a port for HTTP clients here")]
    service: str
    url: Annotated[str, Field(description="the port, without /v1")]
    asks_key: Annotated[bool, Field(description="the port asks for a key")]
    model: Annotated[str, Field(description="the one in the texts; MODEL where there is none")]
    models: Annotated[list[str], Field(description="the service's, those for chats first")]
    clients: list[UseClient]


class Explained(TypedDict):
    decisions: Annotated[list[Decision], Field(description="the newest last")]
    turned_away: Annotated[list[TurnedAway], Field(description="the newest last")]


class NetworkState(TypedDict):
    """An event of the kind `state`."""

    at: Annotated[float, Field(description="seconds since 1970, UTC")]
    status: Status
    peers: list[Peer]
    rates: Rates


class Connection(TypedDict):
    """A client of this node's own ports, now."""

    id: Annotated[int, Field(ge=1, description="its number at this entry; `explain?id=` tells more")]
    request: Annotated[int, Field(ge=1, description="the number of the request that it is at")]
    service: str
    model: Annotated[str, Field(description="of that request; empty where none was named")]
    client: Annotated[str, Field(description="HOST:PORT")]
    peer: Annotated[str, Field(description="peer id; empty while none has it")]
    name: str
    since_s: Seconds
    received: Annotated[Bytes, Field(description="bytes from the client")]
    delivered: Annotated[Bytes, Field(description="bytes to the client")]
    attempts: Count
    state: ClientState


class OpenConnections(TypedDict):
    """The oldest first."""

    total: Count
    connections: list[Connection]


class Draining(TypedDict):
    """Whether this node takes new connections, and how many are still open."""

    draining: bool
    in_flight: Annotated[Count, Field(description="connections that this node's backends still serve")]
    clients: Annotated[Count, Field(description="clients of this node's own ports, without those between two HTTP requests")]
    entries: Annotated[list[str], Field(description="names of the other nodes whose clients are served here")]
    idle: Annotated[
        Count,
        Field(description="of in_flight: nothing moved for 5 s since an answer, as on kept ones (Linux)"),
    ]
    idle_clients: Annotated[Count, Field(description="as `idle`, of clients")]


class Challenge(TypedDict):
    """The daemon's half of a proof by the control key; proof.py has the whole."""

    nonce: Annotated[str, Field(description="the daemon's, for one request")]
    proof: Annotated[str, Field(description="HMAC-SHA256, hexadecimal")]
    lifetime_s: Seconds


class DashboardCode(TypedDict):
    code: Annotated[str, Field(description="good once, for a session")]
    lifetime_s: Seconds


class DashboardSession(TypedDict):
    session: Annotated[str, Field(description="acts for the owner until it ends; the daemon's end is its end too")]
    idle_s: Annotated[float, Field(description="seconds without use after which it ends")]


class Revoked(TypedDict):
    sessions: Annotated[Count, Field(description="how many there were")]


class Rotated(TypedDict):
    """The result of a rotation. `invite` shows the new token itself."""

    network: str
    rotations: Annotated[Count, Field(description="how often the network's token was rotated")]
    former_until: UtcTime | None
    told: Annotated[list[str], Field(description="linked members that have the new token: names, or ids")]
    not_told: Annotated[list[str], Field(description="linked members that did not answer; they are tried again")]
    left_out: Annotated[list[str], Field(description="linked peers that are not told")]
    excepted: Annotated[list[NamedPeer], Field(description="who is left out: excepted, banned, or linked and not told")]
    open_invites: Annotated[Count, Field(description="invites made here that are open: they hand over the new token")]


class PreparedRotation(TypedDict):
    """A rotation for the owner's key to sign; nothing has changed yet."""

    network: str
    rotations: Annotated[Count, Field(description="how often the token will have been rotated")]
    owner: Annotated[str, Field(description="public half of the key that has to sign, hex")]
    order: Annotated[str, Field(description="the bytes to sign, hex; see owner.py")]
    excepted: list[NamedPeer]


class BannedPeer(TypedDict):
    peer_id: str
    name: Annotated[str, Field(description="what it was called when it was banned; may be empty")]
    since: UtcTime


class Banned(TypedDict):
    """Peers that this node keeps away."""

    banned: list[BannedPeer]


class Invite(TypedDict):
    """A token with this node's addresses in it. A secret: its holder is a member. It is not part of the command: a shell
    keeps those.
    """

    token: str
    command: Annotated[str, Field(description="to run on the next machine; it asks for the token")]


class InviteUse(TypedDict):
    """A machine that came by an invite."""

    peer_id: str
    name: Annotated[str, Field(description="as it called itself")]
    at: UtcTime
    confirmed: Annotated[bool, Field(description="it said that it keeps the token, or was here as a member since")]


class OneInvite(TypedDict):
    """An invite that this node made. Its code was told once, to the person who made it."""

    id: str
    state: Literal["open", "used", "expired", "revoked"]
    made_at: UtcTime
    expires_at: UtcTime
    uses: Annotated[int, Field(ge=1, description="how many machines may come by it")]
    used: list[InviteUse]
    approve: Annotated[bool, Field(description="each newcomer waits for a person's yes")]


class NewInvite(OneInvite):
    code: Annotated[str, Field(description="a secret; it is told this once")]
    command: Annotated[str, Field(description="to run on the next machine; it asks for the code")]
    addresses: Annotated[list[str], Field(description="those in the code: where the newcomer looks for this node")]
    note: Annotated[str, Field(description="what may keep newcomers from reaching this node; empty: nothing is known")]


class Newcomer(TypedDict):
    """A machine that has an invite's code and waits for a person's yes."""

    peer_id: str
    name: Annotated[str, Field(description="as it calls itself")]
    address: Annotated[str, Field(description="where its connection comes from")]
    invite: Annotated[str, Field(description="the invite's id")]
    waits_s: Seconds


class Invites(TypedDict):
    invites: Annotated[list[OneInvite], Field(description="the newest last")]
    waiting: Annotated[list[Newcomer], Field(description="newcomers that wait for a person, the first one first")]


class Decided(Invites):
    decided: Annotated[Newcomer, Field(description="the newcomer that the answer was about")]


class Handover(TypedDict):
    """One line of shell that installs this version on one other machine and joins. A secret until it is used."""

    line: str
    version: str
    archive: Annotated[str, Field(description="its name")]
    sha256: Annotated[str, Field(description="of the archive")]
    lifetime_s: Annotated[float, Field(description="seconds for which the line is good, once")]
    invite: Annotated[str, Field(description="the id of the invite whose code the line has")]
    base: Annotated[str, Field(description="where the line finds this node's control port")]
    other_bases: Annotated[list[str], Field(description="where others may find it")]


class LogLines(TypedDict):
    lines: Annotated[list[dict[str, Any]], Field(description="number, timestamp, level, event, and what belongs to it")]
    next: Annotated[int, Field(ge=0, description="ask with after=NEXT for those that follow")]


class Bulk(TypedDict):
    bytes: Bytes
    seconds: Seconds


class Ping(TypedDict):
    """Round trips to a peer. `up` and `down`: null where no bulk was asked for."""

    peer_id: str
    name: str
    path: Path
    address: Annotated[str | None, Field(description="where the connection goes to, or comes from")]
    rtt_ms: list[float]
    up: Bulk | None
    down: Bulk | None


Severity = Literal["ok", "info", "warn", "fail"]


class Finding(TypedDict):
    check: str
    severity: Severity
    finding: str
    fix: Annotated[str, Field(description="what to do; empty where nothing is to be done")]


class Examination(TypedDict):
    findings: list[Finding]


class Problem(TypedDict):
    error: str
