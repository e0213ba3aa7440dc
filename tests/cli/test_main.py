from __future__ import annotations

import io
import json
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from federation import __version__
from federation.cli import detect, join, main
from federation.errors import ListenFailed
from federation.forward.models import finding
from federation.mesh import token_store
from federation.mesh.tokens import Token
from federation.state import StateDir
from federation.units import HostPort
from tests.support.local_server import Handler
from tests.support.local_server import daemon as running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEER_ID = "12D3KooWJ9VnGqVYFbQkPNtHRjnbTnBCHHMsQPUVWAxqgUzRYrbt"
ADDRESS = f"/ip4/192.0.2.1/tcp/4484/p2p/{PEER_ID}"
STATUS = {
    "node": {"name": "alpha", "peer_id": PEER_ID, "addresses": [ADDRESS], "listens": {"default": "127.0.0.1:8484"}},
    "network": {"id": "5f3a", "name": "lab", "peers_online": 1, "peers_known": 1, "invite_addresses": [ADDRESS]},
    "connections": {},
    "warnings": [],
}


class Ran:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Run = "Callable[..., Ran]"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in os.environ:
        if name.startswith(("FEDERATION_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDERATION_DETECT", "no")
    root = logging.getLogger()
    handlers, level, last = root.handlers[:], root.level, logging.lastResort
    hooks = threading.excepthook, sys.unraisablehook
    yield
    root.handlers[:], logging.lastResort, logging.raiseExceptions = handlers, last, True
    root.setLevel(level)
    threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*argv: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main(argv)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return run


class FakeDaemon:
    """Stands for federation.process: becomes ready at once and ends."""

    def __init__(self) -> None:
        self.starts: list[tuple[Any, StateDir, Token]] = []
        self.fails: BaseException | None = None

    def serve(
        self,
        settings: Any,
        state: StateDir,
        token: Token,
        *,
        on_ready: Callable[[dict[str, Any]], None],
        read_settings: Callable[[], Any],
    ) -> int:
        self.read_settings = read_settings
        self.starts.append((settings, state, token))
        if self.fails is not None:
            raise self.fails
        on_ready(STATUS)
        state.unlock()
        return 0

    @property
    def token(self) -> Token:
        return self.starts[-1][2]


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    daemon = FakeDaemon()
    module = types.ModuleType("federation.daemon")
    module.serve = daemon.serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "federation.daemon", module)
    yield daemon
    for _, state, _ in daemon.starts:
        state.unlock()


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    """The default state directory."""
    return StateDir(tmp_path / ".local/state/federation")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A control API that answers as a node would; yields its address and the requests it saw."""
    seen: list[str] = []
    answers = {
        "GET /api/v1/status": STATUS,
        "GET /api/v1/peers": {"peers": [{"peer_id": PEER_ID, "name": "alpha", "self": True, "state": "online"}]},
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(seen[-1], {})).encode())

        do_POST = do_GET

        def log_message(self, *_args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


class Own(Handler):
    """The daemon of a state directory."""

    def reply(self, _body: Any) -> tuple[int, Any]:
        return 200, STATUS


# Quick commands


def test_version_and_help(run: Run) -> None:
    assert run("version").out == run("--version").out == f"federation {__version__}\n"
    for argv in ([], ["--help"], ["token"], ["join", "--help"]):
        ran = run(*argv)
        assert (ran.code, ran.err) == (0, "")
        assert "usage: federation" in ran.out


def test_help_warns_of_the_process_list(run: Run) -> None:
    text = " ".join(run("join", "--help").out.split())
    assert "shows in the process list: prefer -, --token-file or the variable FEDERATION_TOKEN" in text


def test_wrong_options_exit_2_with_one_line(run: Run) -> None:
    token = Token.new().encode()
    for argv in (["join", "--nope"], ["bogus"], ["token", "inspect"], ["join", "--hold", "x"], ["status", token]):
        ran = run(*argv)
        assert ran.code == 2
        assert ran.out == ""
        assert ran.err.startswith("federation: ")
        assert ran.err.count("\n") == 1
        assert token not in ran.err


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["join", "--help"],
        ["version"],
        ["token", "new", "--peer", "h:1"],
        ["token", "inspect", "-"],
        ["status"],
        ["invite"],
    ],
)
def test_quick_commands_import_nothing_slow(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from federation.cli import main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "slow = {'libp2p', 'pydantic', 'pydantic_settings', 'structlog', 'trio', 'rich', 'starlette', 'asyncio'}\n"
        "sys.exit(', '.join(sorted(slow & set(sys.modules))) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *argv],
        input=Token.new().encode(), capture_output=True, text=True, env=_environment(tmp_path), check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("argv", [["--help"], ["token", "new"], ["status"]])
def test_quick_commands_are_quick(argv: list[str], tmp_path: Path) -> None:
    def seconds() -> float:
        """Of processor time: what else the machine does is not the command's."""
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "federation", *argv], capture_output=True, env=_environment(tmp_path), check=False
        )
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime

    assert min(seconds() for _ in range(5)) < 0.3


# token


def test_token_new_prints_the_token_alone(run: Run) -> None:
    ran = run("token", "new", "--name", "lab", "--peer", ADDRESS, "--peer", "box.lan:4484")
    assert ran.code == 0
    token = Token.decode(ran.out)
    assert ran.out == token.encode() + "\n"
    assert (token.name, token.addresses) == ("lab", (ADDRESS, "/dns/box.lan/tcp/4484"))
    assert run("token", "new").out != run("token", "new").out


def test_token_new_refuses_what_nobody_can_dial(run: Run) -> None:
    assert run("token", "new", "--peer", "nonsense").code == 2
    assert run("token", "new", "--name", "x" * 65).code == 2


def test_token_inspect_shows_no_secret(run: Run, monkeypatch: pytest.MonkeyPatch, state: StateDir) -> None:
    token = Token.new("lab", [ADDRESS])
    text = token.encode()
    by_argument = run("token", "inspect", text)
    assert by_argument.code == 0
    for part in (token.network_id, "lab", ADDRESS):
        assert part in by_argument.out
    assert text not in by_argument.out
    assert run("token", "inspect", "-", stdin=f"\n {text}\n").out == by_argument.out
    monkeypatch.setenv("FEDERATION_TOKEN", text)
    assert run("token", "inspect").out == by_argument.out
    monkeypatch.delenv("FEDERATION_TOKEN")
    state.lock()
    state.save_token(text)
    assert run("token", "inspect").out == by_argument.out
    assert run("token", "inspect", "--state-dir", str(state.path)).out == by_argument.out
    state.unlock()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nonsense", "not a federation token"),
        (Token.new().encode()[:-2], "checksum does not match"),
        ("fed4_abc", "newer version"),
    ],
    ids=["nonsense", "damaged", "newer"],  # a random id would differ between the workers of pytest-xdist
)
def test_a_bad_token_is_one_line_that_says_which(text: str, why: str, run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "t"
    file.write_text(text)
    file.chmod(0o600)
    for argv in (["token", "inspect", text], ["join", "--token", text], ["join", "--token-file", str(file)]):
        ran = run(*argv)
        assert ran.code == 2
        assert why in ran.err
        assert ran.err.count("\n") == 1
    assert daemon.starts == []


# status, peers, invite


def test_status_and_peers_as_the_api_has_them(run: Run, api: tuple[str, list[str]]) -> None:
    address, seen = api
    assert run("status", "--json", "--control", address).out == json.dumps(STATUS) + "\n"
    assert json.loads(run("peers", "--json", "--control", address).out)["peers"][0]["self"] is True
    assert seen == ["GET /api/v1/status", "GET /api/v1/peers"]


def test_status_and_peers_for_people(run: Run, api: tuple[str, list[str]]) -> None:
    status = run("status", "--control", api[0])
    assert "lab (5f3a), 1 of 1 nodes online" in status.out
    peers = run("peers", "--control", api[0])
    assert "* alpha" in peers.out
    assert "\x1b" not in status.out + peers.out  # not a terminal


def test_the_running_daemon_is_found_by_its_state_directory(run: Run, api: tuple[str, list[str]], state: StateDir) -> None:
    with running(state, Own):
        assert run("status").code == 0
        assert run("status", "--state-dir", str(state.path)).code == 0


def test_invite_prints_the_saved_token_with_the_node_s_addresses(
    run: Run, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = Token.new("lab", ["/ip4/192.0.2.9/tcp/1"])
    monkeypatch.setitem(STATUS["network"], "id", token.network_id)
    monkeypatch.setitem(STATUS["network"], "invite_addresses", ["/ip4/192.0.2.1/tcp/4484"])
    # A path that an answer names is never looked at.
    monkeypatch.setitem(STATUS["node"], "state_dir", "/nowhere")
    with running(state, Own):
        state.save_token(token.encode())
        ran = run("invite")
        answer = json.loads(run("invite", "--json").out)
    assert (ran.code, ran.err) == (0, "")
    invited = Token.decode(ran.out)
    assert (invited.secret, invited.addresses) == (token.secret, ("/ip4/192.0.2.1/tcp/4484",))
    assert answer == {"token": ran.out.strip(), "command": "federation join --token-file -"}  # no shell keeps the token


def test_invite_is_of_the_network_that_the_daemon_is_in(run: Run, state: StateDir) -> None:
    with running(state, Own):
        for _ in range(2):  # no token here, then another network's
            ran = run("invite")
            assert (ran.code, ran.out) == (1, "")
            assert "run this on the daemon's machine" in ran.err
            assert ran.err.count("\n") == 1
            state.save_token(Token.new("other").encode())


def test_what_proves_nothing_makes_no_invitation(run: Run, api: tuple[str, list[str]], state: StateDir) -> None:
    state.lock()
    state.save_token(Token.new("lab").encode())
    without_key = run("invite", "--control", api[0])
    key = state.control_key()
    state.unlock()
    with_key = run("invite", "--control", api[0])
    for ran in (without_key, with_key):
        assert (ran.code, ran.out) == (1, "")
        assert key not in ran.err
        assert ran.err.count("\n") == 1
    assert all(line.startswith("GET /api/v1/challenge?nonce=") for line in api[1])
    assert len(api[1]) == 1


def test_without_a_daemon_it_says_so(run: Run, tmp_path: Path) -> None:
    ran = run("status", "--state-dir", str(tmp_path))
    assert ran.code == 1
    assert "No federation daemon answers" in ran.err
    assert ran.err.count("\n") == 1


# join: which token


def test_without_a_token_a_network_begins(run: Run, daemon: FakeDaemon, state: StateDir) -> None:
    ran = run("join")
    assert ran.code == 0
    assert state.load_token() == daemon.token.encode()
    assert (state.path / "token").stat().st_mode & 0o777 == 0o600
    assert "127.0.0.1:8484" in ran.out
    assert str(state.path / "token") in ran.out


def test_at_a_terminal_the_next_machines_command_and_token_are_printed(
    run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token stands alone: it is pasted when the command asks, and so in no shell's history."""
    monkeypatch.setattr(join, "is_terminal", lambda stream: stream is sys.stdout)
    *_, command, _, text = run("join").out.splitlines()
    first = daemon.token
    assert command == "federation join --token-file -"
    ran = run(*command.split()[1:], "--state-dir", str(tmp_path / "next"), stdin=text)
    assert ran.code == 0
    assert daemon.token.secret == first.secret
    assert daemon.token.addresses == (ADDRESS,)


def test_elsewhere_a_first_start_prints_no_token(run: Run, daemon: FakeDaemon) -> None:
    """systemd and docker keep what a service prints, and others may read that."""
    ran = run("join")
    assert daemon.token.encode()[5:40] not in ran.out + ran.err
    assert "federation invite" in ran.out


def test_a_network_that_begins_has_an_owner_whose_key_is_here(run: Run, daemon: FakeDaemon, state: StateDir) -> None:
    run("join")
    key = token_store.owner_key(daemon.token, state)
    assert key is not None
    assert key.public == daemon.token.owner
    assert state.owner_key_path(daemon.token.network_id).stat().st_mode & 0o777 == 0o600
    ran = run("join")  # again, and it is neither made anew nor shown
    assert token_store.owner_key(daemon.token, state) == key
    assert key.encode()[8:] not in ran.out + ran.err


def test_a_token_file_that_others_can_read_is_said(run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(Token.new().encode())
    path.chmod(0o644)
    ran = run("join", "--token-file", str(path))
    assert ran.code == 0
    assert ran.err == f"federation: others on this machine can read the token in {path}; make it private: chmod 600 {path}\n"
    path.chmod(0o600)
    assert run("join", "--token-file", str(path)).err == ""


def test_a_restart_needs_no_options_and_prints_no_secret(run: Run, daemon: FakeDaemon) -> None:
    run("join")
    first = daemon.token
    again = run("join")
    assert daemon.token == first
    assert first.encode() not in again.out + again.err
    assert "federation invite" in again.out


def test_the_hint_names_a_state_directory_of_ones_own(run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    path = tmp_path / "my state"
    run("join", "--state-dir", str(path))
    assert f"federation invite --state-dir '{path}'" in run("join", "--state-dir", str(path)).out


def test_a_start_that_failed_leaves_no_network_behind(run: Run, daemon: FakeDaemon, state: StateDir) -> None:
    daemon.fails = ListenFailed("for clients on 127.0.0.1:8484: the port is in use")
    ran = run("join")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "federation: Cannot listen: for clients on 127.0.0.1:8484: the port is in use\n"
    assert state.load_token() is None
    daemon.starts[-1][1].unlock()
    daemon.fails = None
    assert list(state.path.glob("owner-*")) == []
    assert "federation join --token-file -" in run("join").out


def test_token_precedence(run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flag, file, variable, saved = (Token.new(name) for name in ("flag", "file", "variable", "saved"))
    path = tmp_path / "t"
    path.write_text(f"{file.encode()}\n")
    run("join", "--token", saved.encode())
    assert daemon.token == saved
    run("join")
    assert daemon.token == saved
    monkeypatch.setenv("FEDERATION_TOKEN", variable.encode())
    run("join")
    assert daemon.token == variable
    run("join", "--token-file", str(path))
    assert daemon.token == file
    run("join", "--token", flag.encode())
    assert daemon.token == flag
    for argv in (["--token", "-"], ["--token-file", "-"]):
        piped = Token.new("piped")
        run("join", *argv, stdin=f"{piped.encode()}\n")
        assert daemon.token == piped


def test_another_networks_token_is_announced_and_the_old_one_kept(run: Run, daemon: FakeDaemon, state: StateDir) -> None:
    old, new = Token.new("old"), Token.new("new")
    assert "token.previous" not in run("join", "--token", old.encode()).err
    assert "token.previous" not in run("join", "--token", old.encode()).err
    ran = run("join", "--token", new.encode())
    (line,) = [line for line in ran.err.splitlines() if "token.previous" in line]
    assert new.network_id in line
    assert state.load_token() == new.encode()
    assert (state.path / "token.previous").read_text() == old.encode() + "\n"


@pytest.mark.parametrize("argv", [["--token", ""], ["--token", "-"], ["--token-file", "-"], ["--token-file", "empty"]])
def test_an_empty_token_starts_no_new_network(
    argv: list[str], run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    ran = run("join", *argv)
    assert ran.code == 2
    assert "it is empty" in ran.err
    assert daemon.starts == []


def test_token_and_token_file_are_a_usage_error(run: Run, daemon: FakeDaemon) -> None:
    ran = run("join", "--token", Token.new().encode(), "--token-file", "x")
    assert ran.code == 2
    assert "choose one" in ran.err


def test_a_token_file_that_is_not_there_is_named(run: Run, daemon: FakeDaemon) -> None:
    ran = run("join", "--token-file", "nowhere")
    assert ran.code == 2
    assert "cannot read the token file nowhere: No such file" in ran.err


def test_a_token_from_the_command_line_is_in_no_output(run: Run, daemon: FakeDaemon) -> None:
    token = Token.new().encode()
    for argv in (["--log-level", "debug"], ["--hold", "x"], ["--nope"]):
        ran = run("join", "--token", token, *argv)
        assert token not in ran.out + ran.err
    daemon.fails = RuntimeError(f"a bug that tells {token}")
    ran = run("join", "--token", token)
    assert token not in ran.out + ran.err
    assert "[redacted]" in ran.err


def test_settings_reach_the_node(run: Run, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "c.toml"
    config.write_text("capacity = 3")
    monkeypatch.setenv("FEDERATION_NAME", "box")
    run("join", "--config", str(config), "--hold", "1m", "--backend", "127.0.0.1:1", "--no-mdns")
    settings = daemon.starts[-1][0]
    assert (settings.capacity, settings.name, settings.hold_s, settings.mdns) == (3, "box", 60.0, False)
    assert str(settings.backends[0].address) == "127.0.0.1:1"


def test_two_daemons_on_one_state_directory(run: Run, daemon: FakeDaemon, state: StateDir) -> None:
    state.lock()
    ran = run("join", "--token", Token.new().encode())
    assert ran.code == 1
    assert "Another federation daemon uses this state directory" in ran.err
    assert state.load_token() is None  # the running daemon's token was not touched
    assert daemon.starts == []
    state.unlock()


def test_the_daemons_exit_code_is_ours(run: Run, monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> None:
    module = sys.modules["federation.daemon"]
    monkeypatch.setattr(module, "serve", lambda *_args, **_options: 1, raising=False)
    assert run("join").code == 1


# How it ends


class Group(Exception):
    """As trio wraps what its nurseries raise."""

    def __init__(self, *members: BaseException) -> None:
        super().__init__("group")
        self.exceptions = members


def test_an_error_in_a_nursery_is_still_one_line(run: Run, daemon: FakeDaemon) -> None:
    daemon.fails = Group(ValueError("x"), Group(ListenFailed("here")))
    ran = run("join")
    assert (ran.code, ran.err) == (1, "federation: Cannot listen: here\n")


def test_a_bug_is_one_line_and_details_only_when_asked_for(
    run: Run, daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.fails = Group(RuntimeError("two\nlines"))
    ran = run("join")
    assert ran.code == 1
    assert ran.err == "federation: internal error: RuntimeError: two lines; run with --log-level debug for details\n"
    daemon.starts[-1][1].unlock()
    with pytest.raises(SystemExit):
        main.main(["join", "--log-level", "debug"])
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_quiet(run: Run, daemon: FakeDaemon) -> None:
    for error in (KeyboardInterrupt(), Group(KeyboardInterrupt())):
        daemon.fails = error
        ran = run("join")
        assert (ran.code, ran.out, ran.err) == (130, "", "")
        daemon.starts[-1][1].unlock()


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    for argv in (["version"], ["token", "inspect", Token.new().encode()], ["--help"]):
        result = subprocess.run(
            [sys.executable, "-m", "federation", *argv],
            stdout=write,
            stderr=subprocess.PIPE,
            env=_environment(tmp_path),
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, b"")
    os.close(write)


def test_closed_standard_streams_are_no_error(tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m federation version >&- 2>&- <&-"],
        env=_environment(tmp_path), check=False,
    )  # fmt: skip
    assert result.returncode == 0


def _environment(home: Path) -> dict[str, str]:
    """Nothing of this shell's but what Python needs."""
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    return {**keep, "HOME": str(home), "PYTHONPATH": str(Path(main.__file__).parents[2])}


# What is found on this machine


def test_join_without_a_backend_offers_what_runs_here(run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def find(*, without: list[int]) -> list[finding.Found]:
        asked.append(without)
        return [
            finding.Found("ollama", "Ollama", HostPort("127.0.0.1", 11434)),
            finding.Found("vllm", "vLLM", HostPort("127.0.0.1", 8000)),
        ]

    monkeypatch.setattr(detect, "find", find)
    monkeypatch.delenv("FEDERATION_DETECT")
    ran = run("join", "--listen", "127.0.0.1:1234")
    assert ran.code == 0
    assert [str(backend) for backend in daemon.starts[-1][0].backends] == ["default=127.0.0.1:11434", "vllm=127.0.0.1:8000"]
    assert "found Ollama on 127.0.0.1:11434" in ran.err
    assert "found vLLM on 127.0.0.1:8000 too" in ran.err
    assert set(asked[0]) >= {1234, 4484, 8485}
    for unasked in (["--no-detect"], ["--backend", "127.0.0.1:1"]):
        run("join", *unasked)
    assert len(asked) == 1
    assert daemon.starts[-2][0].backends == ()


def test_a_reader_that_goes_away_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_args: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setitem(main._COMMANDS, "version", version)
    ran = run("version")
    assert (ran.code, ran.err) == (0, "")


def test_process_1_ends_at_sigterm_while_it_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a container: the kernel drops a signal that process 1 does not ask for."""
    before = signal.getsignal(signal.SIGTERM)
    ended: list[int] = []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "_exit", ended.append)
    try:
        with pytest.raises(SystemExit):
            main.main(["version"])
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [143]
