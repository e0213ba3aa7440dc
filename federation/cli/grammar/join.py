"""The grammar of `join`: each option is a field of Settings; a test holds the two together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from federation.cli.grammar.common import command

JOIN = """\
Run a node. With a token it joins that network and saves the token, so that a restart needs no options. Without one it
starts a new network, saves its token and prints the command for the next machine.
"""

JOIN_MORE = """\
Each option is also an environment variable (--open-timeout: FEDERATION_OPEN_TIMEOUT; commas between repeated values)
and a key of the settings file (open-timeout = "3s"). Option beats variable, variable beats file. Durations take ms, s,
m or h; sizes KiB, MiB, GiB (1024) or kB, MB, GB (1000).

example: federation join --backend 127.0.0.1:11434
"""
# Field of Settings, flag, its value, help. The defaults in brackets are those of Settings.
JOIN_OPTIONS = (
    (
        "token",
        "--token",
        "TOKEN",
        "the network's token, or - to read it from standard input. On the command line it shows in the process list: "
        "prefer -, --token-file or the variable FEDERATION_TOKEN",
    ),
    ("token_file", "--token-file", "FILE", "read the token from FILE; - is standard input, which asks at a terminal"),
    (
        "invite",
        "--invite",
        "CODE",
        "an invite's code (federation invite --expires 1h), or - to read it from standard input; --token and --token-file "
        "take one too. It is exchanged once for the token, which is saved",
    ),
    ("p2p_listen", "--p2p-listen", "HOST:PORT", "where peers connect [0.0.0.0:4484]"),
    ("name", "--name", "NAME", "shown to people [the host name]"),
    ("vram_bytes", "--vram", "SIZE", "announce this much free VRAM (24GiB, 8000000000) instead of asking the GPU"),
    (
        "gpus",
        "--gpus",
        "LIST",
        "the GPUs that count, as nvidia-smi -L has them: 0,2, UUIDs or their beginnings; or none. Without it "
        "CUDA_VISIBLE_DEVICES says it, or all count",
    ),
    (
        "capacity",
        "--capacity",
        "N",
        "connections that this node's backends take at once; auto: as many as they have slots, where all of them say so "
        "(llama.cpp, LM Studio); 0: no limit [0]",
    ),
    ("policy", "--policy", "POLICY", "least-loaded, least-requests or random [least-loaded]"),
    ("affinity", "--affinity", "SWITCH", "on: an HTTP request goes where its conversation is cached; or off [on]"),
    ("target", "--target", "PEER", "send every connection to this peer (id or name)"),
    ("hold_s", "--hold", "SECONDS", "how long a client waits when there is no peer for it [10]"),
    ("open_timeout_s", "--open-timeout", "SECONDS", "how long a peer may take before the next one is tried [3]"),
    (
        "replay",
        "--replay",
        "UNTIL",
        "how far a client or an HTTP request may be retried: opened (its backend has seen nothing), first-byte (its backend "
        "has answered nothing), never, or auto: first-byte for requests that name a model, opened for the rest [auto]",
    ),
    ("replay_buffer_bytes", "--replay-buffer", "SIZE", "how much of a client is kept for a retry [64KiB]"),
    (
        "http_buffer_bytes",
        "--http-buffer",
        "SIZE",
        "how much of an HTTP request's body is kept to find its model, and for a retry; all bodies together may have four "
        "times as much [64MiB]",
    ),
    ("drain_timeout_s", "--drain-timeout", "SECONDS", "how long open connections get when the node stops [30]"),
    ("health_interval_s", "--health-interval", "SECONDS", "how often backends are checked [2]"),
    ("health_path", "--health-path", "PATH", "check backends by HTTP GET of PATH instead of by a TCP connect"),
    ("announce_interval_s", "--announce-interval", "SECONDS", "how often this node tells the others how it is [5]"),
    ("max_connections", "--max-connections", "N", "clients at this node at once [16384]"),
    (
        "max_connections_per_peer",
        "--max-connections-per-peer",
        "N",
        "connections that this node's backends take from one other node at once [4096]",
    ),
    ("state_dir", "--state-dir", "DIR", "where identity and token are kept [the user's state directory]"),
    ("control", "--control", "HOST:PORT", "the control API and dashboard [127.0.0.1:8485]"),
    (
        "path_penalty_s",
        "--path-penalty",
        "SECONDS",
        "among equally busy peers, one whose path is slower than the nearest by more than this comes last; 0: never [0.1]",
    ),
    ("relay_reservations", "--relay-reservations", "N", "members that this node relays for at once [128]"),
    (
        "relay_circuits",
        "--relay-circuits",
        "N",
        "connections that it relays at once, a quarter of them for one member [512]",
    ),
    ("relay_rate_bytes", "--relay-rate", "SIZE", "bytes per second of one relayed connection; 0: no limit [100MiB]"),
    (
        "tls_cert",
        "--tls-cert",
        "FILE",
        "certificate, in PEM form, with which the ports of --listen and --control that other machines reach speak TLS "
        "(tcp:// ones do not); read again at SIGHUP",
    ),
    ("tls_key", "--tls-key", "FILE", "its private key, in PEM form"),
    (
        "notify_url",
        "--notify-url",
        "URL",
        "tell this address when a machine dies or returns: an ntfy topic, a Slack or Discord webhook, or what takes JSON; "
        "ntfy+https:// says that a host speaks ntfy. On the command line it shows in the process list: prefer the file",
    ),
    ("notify_url_file", "--notify-url-file", "FILE", "read that address from FILE, at SIGHUP again"),
    ("notify_after_s", "--notify-after", "SECONDS", "how long a machine is silent, or back, before that is told [30]"),
    ("log_level", "--log-level", "LEVEL", "debug, info, warning or error [info]"),
    ("log_format", "--log-format", "FORMAT", "console or json [console]"),
)

JOIN_REPEATABLE = (
    (
        "backends",
        "--backend",
        "[NAME=]HOST:PORT",
        'a local TCP server to offer; without NAME its service is "default". http://HOST:PORT is asked for its models, '
        "tcp://HOST:PORT never; unix:/PATH is a Unix socket",
    ),
    (
        "listens",
        "--listen",
        "[NAME=]HOST:PORT",
        "local port for clients of a service [127.0.0.1:8484]. If the service is HTTP, each request goes by its model; "
        "http://HOST:PORT says so outright, tcp://HOST:PORT never; https://HOST:PORT speaks TLS too, also on loopback; "
        "unix:/PATH is a Unix socket",
    ),
    (
        "allow_origins",
        "--allow-origin",
        "ORIGIN",
        "web pages of this origin (https://chat.example) may use the ports of --listen, and their host is a name of this "
        "machine; * is every page",
    ),
    ("announce", "--announce", "HOST:PORT", "address to announce instead of this machine's own"),
    ("bootstraps", "--bootstrap", "MULTIADDR", "a node of the DHT that --dht asks, with its peer id"),
    ("peers", "--peer", "MULTIADDR", "a peer to dial, besides those in the token; HOST:PORT will do"),
    ("control_hosts", "--control-host", "NAME", "a name under which browsers may ask for the control API"),
)


def add(commands: Any) -> None:
    add_join_options(command(commands, "join", "run a node: join a network, or start one", JOIN, epilog=JOIN_MORE))


def add_join_options(join: argparse.ArgumentParser) -> None:
    for field, flag, metavar, text in JOIN_REPEATABLE:
        join.add_argument(flag, dest=field, action="append", metavar=metavar, help=f"{text}; repeatable")
    for field, flag, metavar, text in JOIN_OPTIONS:
        join.add_argument(flag, dest=field, metavar=metavar, help=text)
    join.add_argument(
        "--detect",
        action=argparse.BooleanOptionalAction,
        help="without --backend, look for Ollama, LocalAI, llama.cpp, vLLM and LM Studio on this machine, and offer what "
        "is there [yes]",
    )
    join.add_argument(
        "--browser-check",
        action=argparse.BooleanOptionalAction,
        help="turn away web pages of other sites that ask at the ports of --listen [yes]",
    )
    join.add_argument(
        "--require-key",
        action=argparse.BooleanOptionalAction,
        help="ask every client for a key (federation key add) at the ports of --listen that are not tcp:// [off loopback, "
        "once there is a key]",
    )
    join.add_argument("--mdns", action=argparse.BooleanOptionalAction, help="look for peers on the local network [yes]")
    join.add_argument(
        "--port-mapping",
        action=argparse.BooleanOptionalAction,
        help="ask the router to forward the p2p port to this machine, by NAT-PMP or UPnP [no]",
    )
    join.add_argument(
        "--dht",
        action=argparse.BooleanOptionalAction,
        help="look for members in a public DHT, under a key that only the token gives; needs --bootstrap [no]",
    )
    join.add_argument(
        "--relay",
        action=argparse.BooleanOptionalAction,
        help="relay for members whom others cannot dial, if they can dial us [yes]",
    )
    join.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file, TOML [config.toml in the user's config directory]"
    )
