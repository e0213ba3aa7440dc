"""Has each client of `federation use` that can be installed here ask a model through a node, with what --write wrote.

Two nodes of a network of their own: one with tests/integration/model_server.py behind it, which answers with its name in the
dialects of OpenAI, Anthropic and Ollama; the other, which the clients ask, has no server and asks for keys. A client passes
if it prints that name. The clients come from the registries of Python and Node by their ordinary programs, into --folder,
which is kept; each run has a home of its own. Open WebUI (7 GB) is tried only if it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleet import Fleet
    from harness import Daemon

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/integration")]
BOX, MODEL, SAY = "the-box", "gemma", "Say hello."
MASTER = "sk-of-this-run-alone"
ASK_S = 180.0
SERVED_S = 600.0


@dataclass(frozen=True)
class Try:
    """`package`: of PyPI, or of npm after "npm:". `command`: run by a shell, in a new folder; {FILE}, {BIN} and {PORT}.
    `serves`: a path of the server that the command is, whose answer a chat follows.
    """

    package: str
    command: str
    serves: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def python(code: str) -> str:
    return f"set -a; . {{FILE}}; set +a; {{BIN}}/python -c '{code}'"


CHAT = '[{"role": "user", "content": "hi"}]'
TRIES = {
    "curl": Try("", "curl -sS -K {FILE}"),
    "openai": Try(
        "openai",
        python(f'from openai import OpenAI as C; print(C().chat.completions.create(model="{MODEL}", messages={CHAT}))'),
    ),
    "anthropic": Try(
        "anthropic",
        python(
            f'import anthropic; print(anthropic.Anthropic().messages.create(model="{MODEL}", max_tokens=9, messages={CHAT}))'
        ),
    ),
    "ollama": Try("ollama", python(f'import ollama; print(ollama.chat(model="{MODEL}", messages={CHAT}))')),
    "langchain": Try(
        "langchain-openai",
        python(f'from langchain_openai import ChatOpenAI as C; print(C(model="{MODEL}").invoke("hi").content)'),
    ),
    "litellm": Try(
        "litellm[proxy]",
        f"LITELLM_LOCAL_MODEL_COST_MAP=True LITELLM_MASTER_KEY={MASTER} "
        "exec {BIN}/litellm --config {FILE} --host 127.0.0.1 --port {PORT}",
        "/v1/models",
        (("Authorization", f"Bearer {MASTER}"),),
    ),
    "aider": Try(
        "aider-chat",
        f'{{BIN}}/aider --message "{SAY}" --yes-always --no-git --no-check-update --analytics-disable',
    ),
    "codex": Try("npm:@openai/codex", f'{{BIN}}/codex exec --skip-git-repo-check "{SAY}"'),
    "claude-code": Try("npm:@anthropic-ai/claude-code", f'IS_SANDBOX=1 {{BIN}}/claude -p "{SAY}"'),
    "continue": Try("npm:@continuedev/cli", f'{{BIN}}/cn -p "{SAY}"'),
    "cline": Try("npm:cline", f'{{BIN}}/cline "{SAY}"'),
    "open-webui": Try(
        "open-webui",
        "set -a; . {FILE}; set +a; export DATA_DIR=$PWD WEBUI_AUTH=False OFFLINE_MODE=true HF_HUB_OFFLINE=1; "
        "WEBUI_SECRET_KEY=x RAG_EMBEDDING_ENGINE=openai exec {BIN}/open-webui serve --host 127.0.0.1 --port {PORT}",
        "/health",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/clients", description=__doc__.partition("\n\n")[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(TRIES)} [all but open-webui]")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "federation-clients", metavar="DIR")
    given = parser.parse_args()
    names = given.clients or [name for name in TRIES if name != "open-webui"]
    if unknown := [name for name in names if name not in TRIES]:
        parser.error(f"no client {', '.join(unknown)} is tried; there are {', '.join(TRIES)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of what ends the daemons
    failed = []
    with network() as (fleet, entry):
        for name in names:
            began = time.monotonic()
            said = tried(name, given.folder, entry, fleet.directory / f"home-{name}")
            ok = BOX in said
            failed += [] if ok else [name]
            took = f"{time.monotonic() - began:5.1f} s"
            print(f"{'ok' if ok else 'FAILED':<7} {name:<12} {version(name, given.folder):<12} {took}", flush=True)
            if not ok:
                print(said[-1500:], file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def network() -> Iterator[tuple[Fleet, Daemon]]:
    from fleet import Fleet
    from harness import wait_until

    with tempfile.TemporaryDirectory(prefix="federation-clients-") as directory:
        fleet = Fleet(Path(directory))
        try:
            server = fleet.model_server(BOX, MODEL)
            offer = ("--backend", f"http://127.0.0.1:{server.address[1]}", "--listen", "127.0.0.1:0")
            box = fleet.daemon("box", *offer, services=())
            entry = fleet.daemon("entry", "--listen", "127.0.0.1:0", "--require-key", "--no-detect", services=(), peer=box)
            wait_until(lambda: entry.api("models")["models"], within=60, what="the entry knows the model")
            yield fleet, entry
        finally:
            for complaint in fleet.close():
                print(f"clients: {complaint}", file=sys.stderr)


def tried(name: str, folder: Path, entry: Daemon, home: Path) -> str:
    """What the client said, or what went wrong."""
    from harness import federation, free_port

    home.mkdir()
    try:
        programs = installed(TRIES[name].package, folder)
    except subprocess.CalledProcessError as error:
        return f"not installed: {error.stderr}"
    made = federation(
        *("use", name, "--write", "--json", "--new-key", name, "--state-dir", str(entry.state_dir)), home=home, check=False
    )  # fmt: skip
    if made.returncode:
        return made.stderr
    port = free_port()
    command = TRIES[name].command
    for place, text in (("{FILE}", json.loads(made.stdout)["file"]), ("{BIN}", str(programs)), ("{PORT}", str(port))):
        command = command.replace(place, text)
    where = {"HOME": str(home), "PATH": os.environ["PATH"], "TERM": "dumb", "LANG": "C.UTF-8"}
    if TRIES[name].serves:
        return served(TRIES[name], command, port, home, where)
    try:
        done = subprocess.run(
            ["bash", "-c", command], cwd=home, env=where, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=ASK_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {ASK_S:g} s"
    return done.stdout if BOX in done.stdout else f"{done.stdout}\n{done.stderr}\nexit code {done.returncode}"


def served(how: Try, command: str, port: int, home: Path, where: dict[str, str]) -> str:
    """The client is a server itself: what it answers to a chat."""
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            ["bash", "-c", command], cwd=home, env=where, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            until = time.monotonic() + SERVED_S
            while not answer(f"http://127.0.0.1:{port}{how.serves}", dict(how.headers)):
                if server.poll() is not None or time.monotonic() > until:
                    return (home / "log").read_text(errors="replace")
                time.sleep(1)
            if how.package == "open-webui":
                return chat_of_open_webui(f"http://127.0.0.1:{port}")
            return answer(f"http://127.0.0.1:{port}/v1/chat/completions", dict(how.headers), asked())
        finally:
            server.terminate()
            server.wait(30)


def asked() -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


def chat_of_open_webui(url: str) -> str:
    """Without accounts (WEBUI_AUTH) it signs anybody in."""
    token = json.loads(answer(f"{url}/api/v1/auths/signin", {}, {"email": "", "password": ""}) or "{}").get("token", "")
    key = {"Authorization": f"Bearer {token}"}
    if MODEL not in answer(f"{url}/api/models", key):
        return "it lists no model"
    return answer(f"{url}/api/chat/completions", key, asked())


def answer(url: str, headers: dict[str, str], body: object = None) -> str:
    """Empty where there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as said:
            return str(said.read().decode())
    except urllib.error.HTTPError as error:
        return "" if body is None else error.read().decode(errors="replace")
    except OSError:
        return ""


def installed(package: str, folder: Path) -> Path:
    """Where its programs are."""
    if not package:
        return Path("/usr/bin")
    kind, _, name = package.rpartition(":")
    at = folder / name.replace("/", "_").replace("[", "_").strip("]@")
    if kind == "npm":
        if not (at / "node_modules/.bin").exists():
            at.mkdir(exist_ok=True)
            run("npm", "install", "--no-audit", "--no-fund", "--prefix", str(at), name)
        return at / "node_modules/.bin"
    if not (at / "ready").exists():
        uv = str(ROOT / ".venv/uv/bin/uv")
        shutil.rmtree(at, ignore_errors=True)
        run(uv, "venv", "--quiet", "--python", sys.executable, str(at))
        run(uv, "pip", "install", "--quiet", "--python", str(at / "bin/python"), name)
        (at / "ready").touch()
    return at / "bin"


def version(name: str, folder: Path) -> str:
    kind, _, package = TRIES[name].package.rpartition(":")
    at = folder / package.replace("/", "_").replace("[", "_").strip("]@")
    if kind == "npm":
        for found in at.glob(f"node_modules/{package}/package.json"):
            return str(json.loads(found.read_text())["version"])
    plain = package.partition("[")[0].replace("-", "_")
    for found in at.glob(f"lib/python*/site-packages/{plain}-*.dist-info"):
        return found.name.removesuffix(".dist-info").rpartition("-")[2]
    return ""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main())
