"""Every error that we raise. The first paragraph of a class's docstring is the message that a person reads.

An error is one line that says what is wrong and what to do. `exit_code` is 2 if the person's input is at fault (usage)
and 1 if the world is (failure). The raiser passes in detail that differs from case to case: the detail ends the line, or is
the whole line if the class only names a kind (`detail_says_all`). It never holds a secret.
"""

from __future__ import annotations

import errno
import inspect


class FederationError(Exception):
    """Something failed"""

    exit_code = 1
    detail_says_all = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        if self.detail and self.detail_says_all:
            return self.detail
        summary = " ".join(inspect.getdoc(type(self)).split("\n\n")[0].split())  # type: ignore[union-attr]
        return f"{summary}: {self.detail}" if self.detail else summary


# Input


class UsageError(FederationError):
    """The command cannot be carried out as given"""

    exit_code = 2
    detail_says_all = True


class NotFound(UsageError):
    """There is no such thing here"""


class ConfigError(UsageError):
    """A setting is wrong"""

    detail_says_all = False


class TokenError(UsageError):
    """The token cannot be used"""

    detail_says_all = False


class TokenMalformed(TokenError):
    """This is not a federation token; copy the whole line that `federation invite` prints"""


class TokenChecksumWrong(TokenError):
    """The token was damaged on the way (its checksum does not match); copy it again"""


class TokenTooNew(TokenError):
    """The token was made by a newer version of federation; upgrade this machine"""


class OwnerKeyWrong(UsageError):
    """This is not a network's owner key; `federation owner export` prints one where it is"""

    detail_says_all = False


class NodeRefused(FederationError):
    """The running node says no"""

    detail_says_all = True


def refusal(status: int, why: str) -> FederationError:
    """Turn a refusal of the control API into an error: status 400 means that a person asked wrongly (api/routing.py)."""
    return UsageError(why) if status == 400 else NodeRefused(why)


class NotDone(FederationError):
    """Not done"""

    detail_says_all = True


class KeyNeeded(FederationError):
    """The daemon asks for its control key; run this as the user who runs the daemon, with --state-dir, or set
    FEDERATION_CONTROL_KEY
    """


class NotProven(FederationError):
    """What answers there does not prove to be your daemon, so it was not told the key, and nothing it says is used; name the
    daemon's own --state-dir, or set FEDERATION_CONTROL_KEY
    """


class OlderDaemon(FederationError):
    """An older version of federation runs there, which cannot prove to be your daemon; restart it, then try again"""


class NotOurs(FederationError):
    """This daemon is another user's; run the command as that user, or with sudo"""


class RecordInvalid(FederationError):
    """A node record is malformed"""


class RecordForged(RecordInvalid):
    """A node record is not by the node that it is about"""


# This machine


class StateDirBusy(FederationError):
    """Another federation daemon uses this state directory; stop it, or give this one its own with --state-dir"""


class StateDirUnusable(FederationError):
    """The state directory cannot be used"""


class ListenFailed(FederationError):
    """Cannot listen"""


class ControlUnreachable(FederationError):
    """No federation daemon answers; start one with `federation join`, or name the state directory of one with --state-dir"""


# The network


class NetworkError(FederationError):
    """The peer-to-peer network failed"""


class PeerUnavailable(NetworkError):
    """The peer cannot take this connection; try the next one"""


class BackendUnavailable(FederationError):
    """The backend was not reached"""


class ProbeFailed(PeerUnavailable):
    """The peer was not reached"""


class HandshakeFailed(NetworkError):
    """The handshake failed"""


class AnotherPeer(HandshakeFailed):
    """Another peer answers there"""


class TokenRefused(HandshakeFailed):
    """The other side holds a different token (another network)"""


class TokenOutdated(TokenRefused):
    """The other side holds this network's token from before it was rotated"""


class TokenRetired(TokenRefused):
    """This node's token is no longer valid: it was rotated. Run `federation invite` on a member, and here `federation join
    --token-file -` with what it prints"""


class InviteUnknown(HandshakeFailed):
    """The node there does not know this invite: another node made it, or it ended long ago; ask for a new one"""


class InviteTooNew(HandshakeFailed):
    """An older version of federation answers there, which knows no invites; upgrade it, or ask for the network's token"""


class InviteRefused(FederationError):
    """The invite was not taken"""

    detail_says_all = True


class InviterUnreachable(NetworkError):
    """The node that made the invite does not answer"""


class PeerBanned(HandshakeFailed):
    """This node has banned the peer; `federation unban` lets it in again"""


class IdentityCopied(HandshakeFailed):
    """This node's identity runs on another machine, too: one is a copy of the other, and members refuse the later one. On
    the copy stop the node, delete the file `identity` in its state directory, and start it again"""


class PeerCopied(HandshakeFailed):
    """The peer runs on two machines with one identity, and the first one stays"""


class BannedByPeer(HandshakeFailed):
    """The peer has banned this node"""


class ProtocolViolation(NetworkError):
    """The peer broke the protocol"""


# HTTP services


class HttpInvalid(FederationError):
    """The bytes are not a message in HTTP/1 that this node serves

    `status` is the answer to the client: to a request its fault's own, to a backend's answer 502.
    """

    def __init__(self, detail: str = "", status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


class HttpUnserved(HttpInvalid):
    """HTTP/1 that an entry does not cut into requests: a method or a target that it does not know"""


def listen_problem(what: str, address: str, flag: str, error: OSError) -> str:
    """Plain words for a port that cannot be opened."""
    if error.errno == errno.EADDRINUSE:
        return f"for {what} on {address}: the port is in use; stop what uses it, or choose another with {flag}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"for {what} on {address}: no permission; choose a port above 1023 with {flag}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"for {what} on {address}: this machine does not have that address; correct {flag}"
    return f"for {what} on {address}: {error.strerror or error}; correct {flag}"
