"""The tools that `federation use` knows, one function each: what to paste, and which file of the tool's own to write.

`reads` names the document that tells the tool's form. Each form was also tried with the tool where it can be installed:
docs/clients.md has the versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from federation.use import forms
from federation.use.forms import quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from federation.use.target import Target

SAY = "Say hello."
OURS = "federation"  # how entries in the lists and tables of others are called
_LONG_AGO = "2026-01-01T00:00:00.000Z"  # Cline wants a time there, and changes it
_LOOPBACK = re.compile(r"^(http://)(?:127\.0\.0\.1|\[::1\])(:\d+)$")


@dataclass(frozen=True)
class File:
    """What a tool reads. `path`: from the person's home, or a bare name in federation's own directory (`is_own`).

    `moved_by`: the variable by which a person moves the directory of the file. `data` goes into it, `unless_there` only
    where the file has none of its own. `lists`: in a list of that name the entries are ours whose value at this path (dots)
    begins or ends with OURS; others stay.
    """

    path: str
    form: str  # env, toml, yaml, json, curl
    data: Mapping[str, Any] | list[Any]
    is_own: bool = False
    moved_by: str = ""
    unless_there: Mapping[str, Any] | None = None
    lists: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        """The whole of it, where there is none yet."""
        if isinstance(self.data, list):
            return forms.as_json(self.data)
        return FORMS[self.form](both(self.unless_there or {}, self.data))


def both(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: both(first.get(name) or {}, value) for name, value in then.items() if isinstance(value, dict)}
    return {**first, **then, **inner}


FORMS: dict[str, Callable[[Any], str]] = {
    "env": forms.env, "toml": forms.toml, "yaml": forms.yaml, "json": forms.as_json, "curl": forms.curl,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """`text`: what to paste; `other`: another way, with its title. `start`: what to run behind `--write`, a way a line; FILE
    stands for the file. `note`: for people.
    """

    text: str
    file: File | None = None
    other: tuple[str, str] | None = None
    start: str = ""
    note: str = ""


@dataclass(frozen=True)
class Client:
    name: str
    title: str
    reads: str
    make: Callable[[Target], Recipe]


def _openai(to: Target) -> Recipe:
    names = {"OPENAI_BASE_URL": f"{to.url}/v1", "OPENAI_API_KEY": to.some_key}
    return _by_environment("openai", names, _python(to), note=_listed(to))


def _python(to: Target) -> str:
    return f"""\
from openai import OpenAI

client = OpenAI(base_url={quoted(f"{to.url}/v1")}, api_key={quoted(to.some_key)})
answer = client.chat.completions.create(
    model={quoted(to.model)}, messages=[{{"role": "user", "content": {quoted(SAY)}}}]
)
print(answer.choices[0].message.content)
"""


def _anthropic(to: Target) -> Recipe:
    names = {"ANTHROPIC_BASE_URL": to.url, "ANTHROPIC_API_KEY": to.some_key}
    script = f"""\
from anthropic import Anthropic

client = Anthropic(base_url={quoted(to.url)}, api_key={quoted(to.some_key)})
answer = client.messages.create(
    model={quoted(to.model)}, max_tokens=1000, messages=[{{"role": "user", "content": {quoted(SAY)}}}]
)
print(answer.content[0].text)
"""
    return _by_environment("anthropic", names, script, note=_listed(to))


def _ollama(to: Target) -> Recipe:
    names = {"OLLAMA_HOST": to.url}
    if to.key:
        names["OLLAMA_API_KEY"] = to.key
    note = "Ollama's clients for Python and JavaScript send the key; its program `ollama` sends none." if to.key else ""
    return _by_environment("ollama", names, f"{forms.env(names, export=True)}ollama run {_shell(to.model)}\n", note=note)


def _langchain(to: Target) -> Recipe:
    names = {"OPENAI_API_BASE": f"{to.url}/v1", "OPENAI_API_KEY": to.some_key}
    script = f"""\
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(base_url={quoted(f"{to.url}/v1")}, api_key={quoted(to.some_key)}, model={quoted(to.model)})
print(llm.invoke({quoted(SAY)}).content)
"""
    recipe = _by_environment("langchain", names, script, note=_listed(to))
    return Recipe(script, recipe.file, ("By environment", recipe.text), recipe.start, recipe.note)


def _by_environment(name: str, names: Mapping[str, str], other: str, *, note: str = "") -> Recipe:
    file = File(f"{name}.env", "env", dict(names), is_own=True)
    title = "To run" if name == "ollama" else "In Python"
    return Recipe(forms.env(names, export=True), file, (title, other), "set -a; . FILE; set +a", note)


def _curl(to: Target) -> Recipe:
    url = f"{to.url}/v1/chat/completions"
    body = f'{{"model": {quoted(to.model)}, "messages": [{{"role": "user", "content": {quoted(SAY)}}}]}}'
    headers = [*([f"Authorization: Bearer {to.key}"] if to.key else []), "Content-Type: application/json"]
    shown = "".join(f"  -H {_shell(header)} \\\n" for header in headers)
    file = File("curl.conf", "curl", {"url": url, "header": headers, "data": body}, is_own=True)
    note = "A key in a command shows in the process list; in the file that --write makes it does not." if to.key else ""
    return Recipe(f"curl {url} \\\n{shown}  -d {_shell(body)}\n", file, start="curl -K FILE", note=note)


def _open_webui(to: Target) -> Recipe:
    names = {"OPENAI_API_BASE_URL": f"{to.url}/v1", "OPENAI_API_KEY": to.some_key, "ENABLE_OLLAMA_API": "False"}
    inside, ways = _in_container(to)
    given = "".join(f" -e {line}" for line in forms.env({**names, "OPENAI_API_BASE_URL": f"{inside}/v1"}).splitlines())
    image = "-v open-webui:/app/backend/data --name open-webui --restart always openwebui/open-webui:main"
    file = File("open-webui.env", "env", names, is_own=True)
    note = "Later, its admin panel has the say (Settings, Connections), and not these variables."
    moved = "" if inside == to.url else f" -e OPENAI_API_BASE_URL={inside}/v1"
    start = f"set -a; . FILE; set +a; open-webui serve\ndocker run -d {ways} --env-file FILE{moved} {image}"
    served = f"{forms.env(names, export=True)}open-webui serve\n"
    return Recipe(served, file, ("In a container", f"docker run -d {ways}{given} {image}\n"), start, note)


def _in_container(to: Target) -> tuple[str, str]:
    """This machine's port as a container names it, and the options for that. A container has a loopback of its own."""
    if to.port.is_local:
        return to.url, "--network=host -e PORT=3000"
    host = "host.docker.internal"
    url, n = _LOOPBACK.subn(rf"\1{host}\2", to.url)
    return url, f"-p 3000:8080 --add-host={host}:host-gateway" if n else "-p 3000:8080"


def _continue(to: Target) -> Recipe:
    models = [
        {
            "name": f"{model} ({OURS})", "provider": "openai", "model": model,
            "apiBase": f"{to.url}/v1", "apiKey": to.some_key,
        }
        for model in to.models
    ]  # fmt: skip
    head = {"name": OURS, "version": "1.0.0", "schema": "v1"}
    file = File(
        ".continue/config.yaml", "yaml", {"models": models}, moved_by="CONTINUE_GLOBAL_DIR",
        unless_there=head, lists={"models": "name"},
    )  # fmt: skip
    return Recipe(file.text, file, start="cn   (or restart the extension)")


def _cline(to: Target) -> Recipe:
    rows = {
        "API Provider": "OpenAI Compatible", "Base URL": f"{to.url}/v1", "OpenAI Compatible API Key": to.some_key,
        "Model ID": to.model,
    }  # fmt: skip
    provider = "openai-compatible"
    settings = {"provider": provider, "apiKey": to.some_key, "model": to.model, "baseUrl": f"{to.url}/v1"}
    data = {"lastUsedProvider": provider, "providers": {provider: {"settings": settings}}}
    made = {"version": 1, "modes": {}, "providers": {provider: {"updatedAt": _LONG_AGO, "tokenSource": "manual"}}}
    file = File(".cline/data/settings/providers.json", "json", data, unless_there=made)
    text = "".join(f"{name}: {value}\n" for name, value in rows.items())
    note = "For its settings in the editor, which keeps the key in a store of its own; --write writes those of Cline's CLI."
    return Recipe(text, file, start="cline", note=note)


def _aider(to: Target) -> Recipe:
    data = {"openai-api-base": f"{to.url}/v1", "openai-api-key": to.some_key, "model": f"openai/{to.model}"}
    file = File(".aider.conf.yml", "yaml", data)
    note = "It warns that it does not know the model's costs and window; --no-show-model-warnings ends that."
    return Recipe(file.text, file, start="aider", note=note)


def _codex(to: Target) -> Recipe:
    provider: dict[str, Any] = {"name": OURS, "base_url": f"{to.url}/v1", "wire_api": "responses"}
    if to.key:
        provider["http_headers"] = {"Authorization": f"Bearer {to.key}"}
    data = {"model": to.model, "model_provider": OURS, "model_providers": {OURS: provider}}
    file = File(".codex/config.toml", "toml", data, moved_by="CODEX_HOME")
    note = "It asks /v1/responses, which Ollama, llama.cpp, vLLM and LM Studio have in their newer versions."
    return Recipe(file.text, file, start="codex", note=note)


def _claude_code(to: Target) -> Recipe:
    every = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    # An own key of the person's, which would go to the model's box, is left out.
    env = {"ANTHROPIC_BASE_URL": to.url, "ANTHROPIC_AUTH_TOKEN": to.some_key, "ANTHROPIC_API_KEY": ""}
    file = File(".claude/settings.json", "json", {"env": env | dict.fromkeys(every, to.model)}, moved_by="CLAUDE_CONFIG_DIR")
    note = "It asks /v1/messages, which Ollama, llama.cpp, vLLM and LM Studio have in their newer versions."
    return Recipe(file.text, file, start="claude", note=note)


def _litellm(to: Target) -> Recipe:
    models = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": f"{to.url}/v1", "api_key": to.some_key},
            "model_info": {"id": f"{OURS}/{model}"},
        }
        for model in to.models
    ]  # fmt: skip
    file = File("litellm.yaml", "yaml", {"model_list": models}, is_own=True, lists={"model_list": "model_info.id"})
    note = "Into a proxy's own file: --write --to FILE. LITELLM_MASTER_KEY is the key that its own clients show."
    return Recipe(file.text, file, start="LITELLM_MASTER_KEY=sk-... litellm --config FILE", note=note)


def _n8n(to: Target) -> Recipe:
    data = [{"id": OURS, "name": OURS, "type": "openAiApi", "data": {"apiKey": to.some_key, "url": f"{to.url}/v1"}}]
    file = File("n8n.json", "json", data, is_own=True)
    note = "Or in n8n: Credentials, OpenAI: API Key and Base URL. It encrypts what it has imported: remove the file then."
    return Recipe(file.text, file, start="n8n import:credentials --input=FILE", note=note)


def _home_assistant(to: Target) -> Recipe:
    rows = {"URL": to.url, **({"API key": to.key} if to.key else {}), "Model": to.model}
    text = "".join(f"{name}: {value}\n" for name, value in rows.items())
    note = (
        "In Home Assistant: Settings, Devices & services, Add integration, Ollama. Choose a model that calls tools, and one "
        "of the list: others it wants to download."
    )
    return Recipe(text, note=note)


def _listed(to: Target) -> str:
    return f"models: {', '.join(to.models[:8])}{' ...' if len(to.models) > 8 else ''}"


def _shell(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        Client("curl", "curl", "curl's manual, --config", _curl),
        Client("openai", "OpenAI's clients", "openai-python, README", _openai),
        Client("anthropic", "Anthropic's clients", "anthropic-sdk-python, README", _anthropic),
        Client("ollama", "Ollama's clients", "Ollama's documentation, FAQ; ollama-python, README", _ollama),
        Client("open-webui", "Open WebUI", "Open WebUI's documentation, Environment Variable Configuration", _open_webui),
        Client("continue", "Continue", "Continue's documentation, config.yaml Reference", _continue),
        Client("cline", "Cline", "Cline's documentation, OpenAI Compatible; `cline auth --help`", _cline),
        Client("aider", "Aider", "aider's documentation, OpenAI compatible APIs; YAML config file", _aider),
        Client("codex", "Codex", "Codex' documentation, Configuration Reference", _codex),
        Client("claude-code", "Claude Code", "Claude Code's documentation, LLM gateway; Settings", _claude_code),
        Client("langchain", "LangChain", "langchain-openai's reference, ChatOpenAI", _langchain),
        Client("litellm", "LiteLLM", "LiteLLM's documentation, OpenAI-Compatible Endpoints; Config.yaml", _litellm),
        Client("n8n", "n8n", "n8n's documentation, CLI commands; OpenAI credentials", _n8n),
        Client("home-assistant", "Home Assistant", "Home Assistant's documentation, Ollama", _home_assistant),
    )
}
