"""token new, token rotate, owner show and owner export, against an API that stands for a node's."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from federation.cli import main, owner
from federation.mesh.owner import OwnerKey, SignedOrder, order_of
from federation.mesh.tokens import Token
from federation.state import StateDir
from tests.support.local_server import Handler, daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KEY, OTHER = OwnerKey(b"o" * 32), OwnerKey(b"x" * 32)
TOKEN = Token(b"t" * 32, "lab", owner=KEY.public)
ANSWER = {
    "network": TOKEN.network_id, "rotations": 1, "former_until": None, "told": ["athens"], "not_told": [], "left_out": [],
    "excepted": [{"peer_id": "12D3KooWb", "name": "bergen"}],
}  # fmt: skip


@dataclass
class Node:
    """Prepares a rotation of TOKEN, and checks what is signed. Keeps all bodies that it was sent."""

    bodies: list[tuple[str, Any]] = field(default_factory=list)
    network: dict[str, Any] = field(
        default_factory=lambda: {
            "id": TOKEN.network_id, "name": "lab", "owner": TOKEN.owner.hex(), "owner_here": False,
            "owner_at": ["athens (12D3KooWa)"],
        }
    )  # fmt: skip

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        if body is None:
            return {"network": self.network}
        self.bodies.append((path.removeprefix("/api/v1/token/"), body))
        order = order_of(
            TOKEN.names, 1, b"n" * 32, issued_ms=1, grace=timedelta(seconds=1), members=["12D3KooWa"]
        ).encode()  # fmt: skip
        if path.endswith("/rotation"):
            return {
                "network": TOKEN.network_id, "rotations": 1, "owner": TOKEN.owner.hex(), "order": order.hex(),
                "excepted": [],
            }  # fmt: skip
        if path.endswith("/signed"):
            SignedOrder.check(TOKEN.owner, order, bytes.fromhex(body["signature"]))
        return ANSWER


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return StateDir(tmp_path / ".local/state/federation")


@pytest.fixture
def node(state: StateDir) -> Iterator[Node]:
    made_up = Node()

    class Api(Handler):
        def reply(self, body: Any) -> tuple[int, Any]:
            return 200, made_up.answer(self.path, body)

    with daemon(state, Api):
        yield made_up


@pytest.fixture
def run(state: StateDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main(argv)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(ended.value.code or 0), said.out, said.err

    return run


class TestTokenNew:
    def test_the_owners_key_is_in_a_file_of_its_own(self, run: Any, tmp_path: Path) -> None:
        path = tmp_path / "owner.key"
        code, out, err = run("token", "new", "--owner-key", str(path))
        assert (code, err.count("\n")) == (0, 1)
        token = Token.decode(out)
        assert out == f"{token.encode()}\n"
        key = OwnerKey.decode(path.read_text())
        assert key.public == token.owner
        assert path.stat().st_mode & 0o777 == 0o600
        assert str(path) in err
        assert key.encode()[8:] not in out + err

    def test_without_the_option_it_is_where_this_users_daemon_finds_it(self, run: Any, state: StateDir) -> None:
        _, out, err = run("token", "new")
        token = Token.decode(out)
        path = state.owner_key_path(token.network_id)
        assert OwnerKey.decode(path.read_text()).public == token.owner
        assert path.stat().st_mode & 0o777 == 0o600
        assert state.path.stat().st_mode & 0o777 == 0o700
        assert str(path) in err

    def test_nothing_is_written_over_and_no_token_printed_whose_key_is_nowhere(self, run: Any, tmp_path: Path) -> None:
        path = tmp_path / "mine"
        path.write_text("precious")
        code, out, err = run("token", "new", "--owner-key", str(path))
        assert (code, out) == (2, "")
        assert err == f"federation: {path} is there already, and is not overwritten; name another file\n"
        assert path.read_text() == "precious"
        code, out, err = run("token", "new", "--owner-key", "-")
        assert (code, out, err) == (2, "", "federation: the owner key goes to a file, and - is none; name one\n")
        code, out, err = run("token", "new", "--owner-key", str(tmp_path / "none/key"))
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "No such file" in err

    def test_a_state_directory_that_cannot_be_had_is_said_and_what_to_do(self, run: Any, state: StateDir) -> None:
        state.path.parent.mkdir(parents=True)
        state.path.write_text("in the way")
        code, out, err = run("token", "new")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "--owner-key" in err

    def test_what_is_refused_leaves_no_key(self, run: Any, state: StateDir) -> None:
        assert run("token", "new", "--name", "x" * 65)[0] == 2
        assert run("token", "new", "--peer", "nonsense")[0] == 2
        assert not state.path.exists()


class TestRotate:
    def test_with_the_key_of_the_node(self, run: Any, node: Any) -> None:
        code, out, err = run("token", "rotate", "--grace", "5s", "--except", "bergen", "--keep-banned")
        assert (code, err) == (0, "")
        assert node.bodies == [("rotate", {"grace_s": 5.0, "except": ["bergen"], "keep_banned": True})]
        assert "left out: bergen (12D3KooWb)\n" in out
        assert json.loads(run("token", "rotate", "--json")[1]) == ANSWER

    def test_with_a_key_from_a_file_which_stays_in_this_process(self, run: Any, node: Any, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(KEY.encode())
        path.chmod(0o600)
        for options, given in (([str(path)], ""), (["-"], f"{KEY.encode()}\n")):
            code, out, err = run("token", "rotate", "--owner-key", *options, stdin=given)
            assert (code, err) == (0, "")
            assert "is a new one" in out
            assert [path for path, _ in node.bodies] == ["rotation", "rotation/signed"]
            assert KEY.encode()[8:] not in str(node.bodies)
            assert KEY.seed.hex() not in str(node.bodies)
            node.bodies.clear()
        path.chmod(0o644)
        assert "chmod 600" in run("token", "rotate", "--owner-key", str(path))[2]

    def test_a_key_of_another_network_signs_nothing(self, run: Any, node: Any) -> None:
        code, out, err = run("token", "rotate", "--owner-key", "-", stdin=OTHER.encode())
        assert (code, out) == (2, "")
        assert f"this is not the owner key of network {TOKEN.network_id}" in err
        assert [path for path, _ in node.bodies] == ["rotation"]

    @pytest.mark.parametrize(
        ("argv", "stdin", "why"),
        [
            (["--grace", "soon"], "", "--grace 'soon': write seconds"),
            (["--grace", "721h"], "", "--grace '721h': 30 days (720h) at most"),
            (["--except", "bergen", "--except", ""], "", "--except '': it is empty"),
            (["--owner-key", "-"], "fed3_abcdefghijk", "not a network's owner key"),
            (["--owner-key", "-"], KEY.encode()[:-1], "damaged"),
            (["--owner-key", "nowhere"], "", "cannot read the owner key file nowhere: No such file"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, run: Any, node: Any, argv: list[str], stdin: str, why: str) -> None:
        code, out, err = run("token", "rotate", *argv, stdin=stdin)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert why in err
        assert node.bodies == []
        assert not stdin or stdin[8:] not in err

    def test_what_it_says(self) -> None:
        answer = {"network": "n", "former_until": "2026-01-01T00:00:00+00:00", "told": ["a", "b"], "not_told": ["c"]}
        out = [{"peer_id": "12D3KooWx", "name": "x\x1b"}, {"peer_id": "12D3KooWy", "name": ""}]
        assert owner.rotated({**answer, "excepted": out}).splitlines() == [
            "the token of network n is a new one; `federation invite` prints it",
            "told: a, b",
            "no answer yet from: c",
            "left out: x? (12D3KooWx)",
            "left out: 12D3KooWy (its record is not here: check the id)",
            "until 2026-01-01T00:00:00+00:00 the former token admits too; who has not got the new one by then is out",
        ]
        alone = {"network": "n", "former_until": None, "told": [], "not_told": [], "excepted": []}
        assert owner.rotated(alone).splitlines()[1:] == [
            "told: nobody, no other member is connected",
            "the former token admits nobody any longer",
        ]


class TestOwner:
    def test_an_ownerless_network_has_no_key_to_export(self, run: Any, state: StateDir) -> None:
        state.lock()
        state.save_token(Token(b"t" * 32, "lab").encode())
        state.unlock()
        code, out, err = run("owner", "export")
        assert (code, out) == (1, "")
        assert "has no owner" in err

    def test_show_asks_the_node(self, run: Any, node: Any) -> None:
        assert run("owner", "show")[1].splitlines() == [
            f"network  lab ({TOKEN.network_id})",
            f"owner    {KEY.public.hex()}",
            "key      not on this node",
            "         athens (12D3KooWa) says that it has it",
        ]
        assert json.loads(run("owner", "show", "--json")[1]) == node.network
        node.network = {**node.network, "owner": "", "owner_at": []}
        assert run("owner", "show")[1].splitlines()[1].startswith("owner    none: ")

    def test_without_a_node_show_reads_what_is_saved(self, run: Any, state: StateDir) -> None:
        assert run("owner", "show")[0] == 1
        state.lock()
        state.save_token(TOKEN.encode())
        assert "key      not on this node" in run("owner", "show")[1]
        state.save_owner_key(TOKEN.network_id, KEY.encode())
        assert "key      here" in run("owner", "show")[1]
        state.unlock()

    def test_export_prints_the_key_alone_and_warns(self, run: Any, state: StateDir, tmp_path: Path) -> None:
        assert run("owner", "export")[0] == 2
        state.lock()
        state.save_token(TOKEN.encode())
        code, out, err = run("owner", "export")
        assert (code, out) == (1, "")
        assert "is not in" in err
        state.save_owner_key(TOKEN.network_id, KEY.encode())
        code, out, err = run("owner", "export")
        assert (code, out) == (0, f"{KEY.encode()}\n")
        assert "decides who is a member" in err
        path = tmp_path / "backup"
        code, out, err = run("owner", "export", "--to", str(path))
        assert (code, out) == (0, "")
        assert str(path) in err
        assert path.read_text() == f"{KEY.encode()}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert run("owner", "export", "--to", str(path))[0] == 2
        state.unlock()
