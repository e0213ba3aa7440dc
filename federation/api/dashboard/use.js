// "Use it": the address and the key, as each client wants them.

import { $, copyable, copyButton, el, field, select } from "./dom.js";
import { closeButton } from "./dialogs.js";
import { visible } from "./format.js";

const EVERYWHERE = new Set(["0.0.0.0", "[::]", "::"]);
const NO_KEY = "none"; // clients want something there
const YOUR_KEY = "YOUR_KEY";
const TO_SAY = "Say hello.";

/** Where clients go: a port for all addresses of the machine is named by the one that this page came from. */
export function urlOf(address, host = location.hostname) {
  const [, scheme = "http", name, port] = /^(?:(https?):\/\/)?(.*):(\d+)$/.exec(address) ?? [];
  return `${scheme}://${EVERYWHERE.has(name) ? host : name}:${port}`;
}

// A model's name comes from another machine, and what is copied here is run: it is quoted for the language that it is in.
export const shell = (text) => `'${visible(text).replaceAll("'", `'\\''`)}'`;
const json = (text) => JSON.stringify(visible(text));

const CLIENTS = {
  curl: ({ url, key, model }) => {
    const body = `{"model": ${json(model)}, "messages": [{"role": "user", "content": ${json(TO_SAY)}}]}`;
    const header = key === NO_KEY ? "" : `  -H ${shell(`Authorization: Bearer ${key}`)} \\\n`;
    return `curl ${url}/v1/chat/completions \\\n${header}  -H 'Content-Type: application/json' \\\n  -d ${shell(body)}`;
  },
  "openai for Python": ({ url, key, model }) =>
    `from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key=${json(key)})
answer = client.chat.completions.create(model=${json(model)}, messages=[{"role": "user", "content": ${json(TO_SAY)}}])
print(answer.choices[0].message.content)`,
  "Open WebUI": ({ url, key }) =>
    `OPENAI_API_BASE_URL=${url}/v1 OPENAI_API_KEY=${key} ENABLE_OLLAMA_API=False open-webui serve`,
  "any OpenAI client": ({ url, key }) => `export OPENAI_BASE_URL=${url}/v1\nexport OPENAI_API_KEY=${key}`,
  "Claude Code, Anthropic's clients": ({ url, key, model }) =>
    `export ANTHROPIC_BASE_URL=${url}\nexport ANTHROPIC_AUTH_TOKEN=${key}\nexport ANTHROPIC_MODEL=${shell(model)}`,
  "Ollama's client": ({ url, model }) => `OLLAMA_HOST=${url} ollama run ${shell(model)}`,
};
const NOTES = {
  "Open WebUI":
    "Or in its admin settings, under Connections, OpenAI API: the address with /v1, and the key. In a container " +
    "127.0.0.1 is the container itself: give this machine's address there, and open the port for it (--listen).",
  "Ollama's client": "It sends no key: for a port that asks for one use another client.",
};

/** `listens`: service -> address; `models`: names; `keys`: the section's state (keys.js). */
export function showUse(listens, models, keys) {
  const dialog = $("use");
  const services = Object.entries(listens);
  const client = select(
    "use-client",
    Object.keys(CLIENTS).map((name) => [name, name]),
  );
  const service = select(
    "use-service",
    services.map(([name, address]) => [name, address]),
  );
  const model = select("use-model", models.length ? models.map((name) => [name, name]) : [["your model", "MODEL"]]);
  const code = el("code", { class: "command", id: "use-code", tabindex: "0", "aria-label": "What to run" });
  const address = el("p", { class: "do" });
  const note = el("p", { class: "muted" });
  const show = () => {
    const url = urlOf(service.value);
    address.replaceChildren(copyable(url, "the address"));
    code.textContent = CLIENTS[client.value]({ url, key: keyFor(keys), model: model.value });
    note.textContent = NOTES[client.value] ?? "";
    note.hidden = !note.textContent;
  };
  for (const choice of [client, service, model]) choice.addEventListener("change", show);
  dialog.replaceChildren(
    el("h2", { id: "use-title" }, "Use it"),
    el("p", {}, "Point any client at this machine, or at any other of the network. Its requests go where their model is."),
    address,
    ...(services.length > 1 ? [field("Service", service)] : []),
    field("Client", client),
    field("Model", model),
    code,
    copyButton("it", () => code.textContent),
    note,
    el("p", { class: "muted", id: "use-key" }, keyNote(keys)),
    el("div", { class: "buttons" }, closeButton(dialog)),
  );
  show();
  dialog.showModal();
}

function keyFor({ made, rows }) {
  if (made) return made.key;
  return rows.length ? YOUR_KEY : NO_KEY;
}

function keyNote({ made, rows, asks }) {
  if (made) return `The key is ${made.name}, which you made on this page.`;
  if (!rows.length) return "No port asks for a key; clients that insist on one may send anything.";
  if (asks.loopback) return `${YOUR_KEY}: one of the keys below. Only who made it has seen it; you can make another one.`;
  return `${YOUR_KEY}: one of the keys below, for ports that other machines reach; on loopback it may be anything.`;
}
