"""What stands behind every target: nginx, the token-stream server and the upload sink."""

from __future__ import annotations

import os
import pwd
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .procs import accepts, free_port, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from .procs import Supervisor

SERVICES = ("web", "sse", "sink")
FILE_BYTES = 256 << 20
BODY = "hello, world"  # 12 bytes

# keepalive_requests: the default of 1,000 would make nginx close connections in the middle of a measurement.
_NGINX = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
{user}
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 1h;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /body {{ default_type text/plain; return 200 "{body}"; }}
        location = /file {{ root {directory}/www; }}
    }}
}}
"""


@dataclass(frozen=True)
class Backends:
    ports: dict[str, int]  # service -> port on 127.0.0.1


def nginx_config(directory: Path, port: int) -> str:
    # As root nginx would serve as `nobody`, who cannot enter the private directory.
    user = f"user {pwd.getpwuid(0).pw_name} root;" if os.geteuid() == 0 else ""
    return _NGINX.format(directory=directory, port=port, user=user, body=BODY)


def write_file(path: Path, size: int = FILE_BYTES) -> None:
    """One random MiB over and over: no path may gain by compressing, and making it must not take long."""
    block = os.urandom(1 << 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)


def bring_into_memory(path: Path) -> int:
    """Read the file, whose size is returned. The kernel may have dropped it since it was last asked for (reclaim by DAMON
    does so within a minute), and it is not the disk that is measured."""
    scratch = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        return sum(iter(lambda: file.readinto(scratch), 0))


def file_in(directory: Path) -> Path:
    return directory / "www" / "file"


def start(supervisor: Supervisor) -> Backends:
    directory = supervisor.directory
    write_file(file_in(directory))
    web = free_port()
    config = directory / "nginx.conf"
    config.write_text(nginx_config(directory, web))
    supervisor.start("nginx", ["nginx", "-p", directory, "-c", config, "-e", directory / "nginx-error.log"])
    wait_until(lambda: accepts(web), f"nginx ({supervisor.log_tail('nginx')})")
    ports = {"web": web}
    for service, module in (("sse", "ruler.sse"), ("sink", "ruler.bulk")):
        process = supervisor.start(service, [sys.executable, "-m", module, "serve"], announces=True)
        ports[service] = int(supervisor.read_line(service, process))
    return Backends(ports)
