// "Use it": what to paste into each client. The node makes the texts (`federation use` prints the same); the key is put in here.

import { $, copyable, copyButton, el, field, select } from "./dom.js";
import { closeButton } from "./dialogs.js";
import { get } from "./stream.js";

const EVERYWHERE = new Set(["0.0.0.0", "[::]", "::"]);
const KEY_HERE = "YOUR_KEY"; // as the node writes it

/** Where clients go. A port for all addresses is named by the one that this page came from; a certificate has its own names. */
export function urlOf({ address, scheme = "http", names = [] }, host = location.hostname) {
  const [, name, port] = /^(.*):(\d+)$/.exec(address) ?? [];
  const own = EVERYWHERE.has(name) ? host : name;
  const certified = names.find((known) => !known.startsWith("*"));
  const isFor = (known) => known === own.replace(/^\[|\]$/g, "") || (known.startsWith("*.") && own.endsWith(known.slice(1)));
  const there = scheme === "https" && certified && !names.some(isFor) ? certified : own;
  return `${scheme}://${there}:${port}`;
}

/** `keys`: the section's state (keys.js). */
export async function showUse(keys) {
  const dialog = $("use");
  const heading = el("h2", { id: "use-title" }, "Use it");
  const buttons = el("div", { class: "buttons" }, closeButton(dialog));
  dialog.replaceChildren(heading, el("p", { class: "muted" }, "One moment …"), buttons);
  dialog.showModal();
  try {
    const said = await asked(keys, {});
    dialog.replaceChildren(heading, ...choices(said, keys), buttons);
  } catch (error) {
    dialog.replaceChildren(heading, problemOf(error), buttons);
  }
}

const problemOf = (error) => el("p", { class: "problem", role: "alert" }, `That did not work: ${error.message}.`);

function asked(keys, choice) {
  const query = new URLSearchParams({ host: location.hostname, ...choice });
  if (keys.made) query.set("key", "true");
  return get(`/api/v1/use?${query}`);
}

function choices(said, keys) {
  const client = select(
    "use-client",
    said.clients.map(({ name, title }) => [title, name]),
  );
  const service = select(
    "use-service",
    said.services.map((name) => [name, name]),
  );
  const model = select("use-model", []);
  const address = el("p", { class: "do" });
  const texts = el("div", { class: "use-texts" });
  const note = el("p", { class: "muted" });
  const inFile = el("p", { class: "muted" });
  const asksKey = el("p", { class: "muted", id: "use-key" });
  const show = () => {
    const chosen = said.clients.find(({ name }) => name === client.value);
    address.replaceChildren(copyable(said.url, "the address"));
    texts.replaceChildren(...chosen.texts.flatMap((text, i) => shown(text, i, keys)));
    note.textContent = chosen.note;
    note.hidden = !chosen.note;
    inFile.replaceChildren("On this machine, ", el("code", {}, `federation use ${chosen.name} --write`), " puts it into the client's own file.");
    inFile.hidden = !chosen.file;
    asksKey.textContent = keyNote(said, keys);
  };
  const fill = () => {
    const options = said.models.length ? said.models.map((name) => [name, name]) : [["your model", said.model]];
    model.replaceChildren(...select("", options).children);
    model.value = said.model;
  };
  const again = async (choice) => {
    try {
      said = await asked(keys, choice);
      fill();
      show();
    } catch (error) {
      texts.replaceChildren(problemOf(error));
    }
  };
  client.addEventListener("change", show);
  service.addEventListener("change", () => again({ service: service.value }));
  model.addEventListener("change", () => again({ service: service.value, model: model.value }));
  fill();
  show();
  return [
    el("p", {}, "Point any client at this machine, or at any other of the network. Its requests go where their model is."),
    address,
    ...(said.services.length > 1 ? [field("Service", service)] : []),
    field("Client", client),
    field("Model", model),
    texts,
    note,
    inFile,
    asksKey,
  ];
}

function shown({ title, text }, i, keys) {
  const filled = keys.made ? text.replaceAll(KEY_HERE, keys.made.key) : text;
  const id = i ? `use-code-${i}` : "use-code";
  const code = el("code", { class: "command", id, tabindex: "0", "aria-label": title || "What to run" });
  code.textContent = filled.trimEnd();
  return [...(title ? [el("h3", {}, title)] : []), code, copyButton(title || "it", () => code.textContent)];
}

function keyNote({ asks_key }, { made, rows }) {
  if (made) return `The key is ${made.name}, which you made on this page.`;
  if (asks_key) return `${KEY_HERE}: one of the keys below. Only who made it has seen it; you can make another one.`;
  return rows.length
    ? "This port asks for no key; clients that insist on one may send anything."
    : "No port asks for a key; clients that insist on one may send anything.";
}
