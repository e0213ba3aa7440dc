"""Client keys as people make and list them at a node that does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import TypeAdapter

from federation.errors import NotDone, NotFound
from federation.forward.client_keys import Grant
from federation.forward.http.head import parse_request
from federation.ops import schemas
from federation.ops.client_keys import KeyWish
from tests.support.nodes import idle_node

if TYPE_CHECKING:
    from pathlib import Path


async def test_made_listed_used_and_revoked(tmp_path: Path) -> None:
    node = idle_node(tmp_path)
    operator = node.operator
    assert await operator.keys() == {
        "keys": [], "asked_off_loopback": False, "asked_on_loopback": False, "entries": 1, "entries_counted": 1,
    }  # fmt: skip
    new = await operator.add_key(KeyWish(" phone ", ("m",), 3600.0, 60, 60))
    TypeAdapter(schemas.NewClientKey).validate_python(new, strict=True)
    text = new["key"]
    assert (new["name"], new["models"], new["rate"], new["made_by_name"]) == ("phone", ["m"], "60/m", "me")
    said = parse_request(f"GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {text}\r\n\r\n".encode())
    assert isinstance(node.client_keys.judge(said, on_loopback=False), Grant)
    listed = await operator.keys()
    TypeAdapter(schemas.ClientKeys).validate_python(listed, strict=True)
    (row,) = listed["keys"]
    assert (row["name"], row["requests"], row["requests_here"], row["made_by"]) == ("phone", 1, 1, node.host.peer_id)
    assert row["last_used"] is not None
    assert row["expires_at"] is not None
    assert (listed["asked_off_loopback"], listed["asked_on_loopback"]) == (True, False)
    assert text not in repr(listed)
    assert b'federation_key_requests_total{key="phone"} 1.0' in operator.metrics_text("")[0]
    assert (await operator.revoke_key("phone"))["keys"] == []
    with pytest.raises(NotFound):
        await operator.revoke_key("phone")


@pytest.mark.parametrize(
    "wish", [KeyWish(""), KeyWish("x" * 65), KeyWish("a\nb"), KeyWish("ok", ("",)), KeyWish("ok", ("x" * 201,))]
)
async def test_what_is_no_key_is_refused(tmp_path: Path, wish: KeyWish) -> None:
    with pytest.raises(NotDone):
        await idle_node(tmp_path).operator.add_key(wish)


async def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    await idle_node(tmp_path).operator.add_key(KeyWish("phone"))
    assert [row["name"] for row in (await idle_node(tmp_path).operator.keys())["keys"]] == ["phone"]
