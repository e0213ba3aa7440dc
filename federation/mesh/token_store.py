"""The network of this node: that of the token given at this start, else that of the saved token. Of two tokens of one
network the node uses the one that was rotated last: an old token in a service file does not undo a rotation.

Rule: nothing that a person typed is lost; the state directory keeps a token that another one replaces.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from federation.errors import OwnerKeyWrong, TokenError
from federation.mesh.owner import OwnerKey
from federation.mesh.tokens import MAX_ADDRESSES, Token

if TYPE_CHECKING:
    from federation.state import StateDir


@dataclass(frozen=True, slots=True)
class Membership:
    """The token to use. `left_behind`: it replaced the token of another network, which token.previous keeps."""

    token: Token
    left_behind: bool = False
    outdated: bool = False  # the given token is from before a rotation, so the saved one is used


def saved_token(state: StateDir) -> Token | None:
    """The token in the state directory. A damaged file raises TokenError: a new network instead would hide the damage."""
    text = state.load_token()
    if text is None:
        return None
    try:
        return Token.decode(text)
    except TokenError as error:
        raise type(error)(f"saved in {state.path / 'token'}") from None


def owner_key(token: Token, state: StateDir) -> OwnerKey | None:
    """The network's owner key, if this state directory has it. Raises OwnerKeyWrong or StateDirUnusable."""
    text = state.load_owner_key(token.network_id)
    if text is None:
        return None
    path = state.owner_key_path(token.network_id)
    try:
        key = OwnerKey.decode(text)
    except OwnerKeyWrong:
        raise OwnerKeyWrong(f"{path} is damaged; put the backup there, or use it by --owner-key") from None
    if key.public != token.owner:
        raise OwnerKeyWrong(f"{path} is another network's; put the right one there, or use it by --owner-key")
    return key


def take_up(given: Token, state: StateDir) -> Membership:
    """Use the given token, and save it for the next start."""
    text = state.load_token()
    try:
        saved = None if text is None else Token.decode(text)
    except TokenError:
        saved = None  # damaged: still kept beside the new one
    if saved is not None and saved.secret == given.secret and saved.names_the_network_of(given):
        # The saved token again. A person may have typed the addresses of either: keep both, the new ones first.
        addresses = tuple(dict.fromkeys(given.addresses + saved.addresses))[:MAX_ADDRESSES]
        token = replace(given, name=given.name or saved.name, addresses=addresses)
        state.save_token(token.encode(), keep_old=False)
        return Membership(token)
    if saved is not None and saved.supersedes(given):
        return Membership(saved, outdated=True)
    state.save_token(given.encode())
    if saved is not None and given.supersedes(saved):
        return Membership(given)
    state.save_peers({})  # they are members of the network that this node leaves
    return Membership(given, left_behind=text is not None)
