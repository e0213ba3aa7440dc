"""Routes that prove a client to be the owner: a challenge for the command line, a code and a session for the dashboard.

The challenge and the exchange of a code for a session need no key: the client that asks has proved nothing yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from federation.api.proof import LIFETIME_S, NONCE_CHARS, Challenges
from federation.api.routing import Body, Routes
from federation.api.sessions import CODE_S, IDLE_S, Sessions
from federation.ops import schemas

if TYPE_CHECKING:
    from starlette.requests import Request

CHALLENGE = "/api/v1/challenge"
SESSION = "/api/v1/dashboard/session"
SPENT = "this address was used before, or is older than 30 s: run `federation dashboard` again, and open what it prints"


class ChallengeQuery(BaseModel):
    nonce: Annotated[
        str, Field(pattern=f"^[A-Za-z0-9_-]{{{NONCE_CHARS}}}$", description="32 random bytes of the client's, as base64url")
    ]


class OneCode(Body):
    code: Annotated[str, Field(min_length=1, max_length=128, description="from the address of the dashboard")]


def is_open(method: str, path: str) -> bool:
    """Whether a client may ask this before it has proved to be the owner, off loopback too."""
    return (method, path) in (("GET", CHALLENGE), ("POST", SESSION))


def routes(challenges: Challenges, sessions: Sessions) -> Routes:
    routes = Routes()

    @routes.get(CHALLENGE, schemas.Challenge, query=ChallengeQuery, request=True)
    async def challenge(_node: object, query: ChallengeQuery, request: Request) -> schemas.Challenge:
        """The daemon's proof of the control key, and a nonce for one request that is signed with the key."""
        nonce, proof = challenges.issue(query.nonce, request.headers.get("host", ""))
        return {"nonce": nonce, "proof": proof, "lifetime_s": LIFETIME_S}

    @routes.post("/api/v1/dashboard/code", schemas.DashboardCode, owner=True)
    async def dashboard_code(_node: object) -> schemas.DashboardCode:
        """A code for one browser, once."""
        return {"code": sessions.new_code(), "lifetime_s": CODE_S}

    @routes.post(SESSION, schemas.DashboardSession, body=OneCode)
    async def dashboard_session(_node: object, body: OneCode) -> schemas.DashboardSession:
        """A session for a code. It goes where the control key goes: Authorization: Bearer SESSION."""
        session = sessions.exchange(body.code)
        if session is None:
            raise HTTPException(403, SPENT)
        return {"session": session, "idle_s": IDLE_S}

    @routes.post("/api/v1/dashboard/revoke", schemas.Revoked, owner=True)
    async def dashboard_revoke(_node: object) -> schemas.Revoked:
        """End all sessions of the dashboard, and codes that were not used."""
        return {"sessions": sessions.end_all()}

    return routes
