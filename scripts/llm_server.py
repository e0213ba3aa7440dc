"""An OpenAI-compatible server with a small real model on the CPU: `llm_server.py MODEL.gguf`. Prints its address when ready.

One thread, so that two of them fit on two cores, and one is not waiting for the other.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp

# A base model chats if it may go on with questions and answers.
CHAT = """\
{% for message in messages %}{% if message.role == 'user' %}Q: {{ message.content }}
A:{% elif message.role == 'assistant' %} {{ message.content }}
{% else %}{{ message.content }}
{% endif %}{% endfor %}"""


def main() -> None:
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before the server's threads are made, which inherit it
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {"gemma"}
    params.chat_template = CHAT
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 8192  # for all slots together
    params.n_parallel = 4
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
