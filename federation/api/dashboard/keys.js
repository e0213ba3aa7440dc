// Client keys: what there is, their use at all machines, a dialog that makes one, and the way to revoke one.

import { $, announce, arrange, copyButton, el, field, select, setText } from "./dom.js";
import { ask, closeButton, needsSession } from "./dialogs.js";
import { ago, day, number } from "./format.js";
import { get, hasSession, post } from "./stream.js";

const EVERY_MS = 5_000;
const HEAD = ["Name", "Models", "Expires", "Rate", "Made", "Last used", "Requests", ""];
const DAY_S = 86_400;
const LIFETIMES = [
  ["never", ""],
  ["in a day", DAY_S],
  ["in 30 days", 30 * DAY_S],
  ["in 90 days", 90 * DAY_S],
  ["in a year", 365 * DAY_S],
];
const RATES = [
  ["any", 0],
  ["10 requests a minute", 10],
  ["60 requests a minute", 60],
  ["600 requests a minute", 600],
];

export class Keys {
  constructor() {
    this.rows = [];
    this.made = null; // {name, key}: the newest one that was made on this page, until it is left
    this.isThere = null; // whether the node has keys at all; null: not known yet
    this.asks = { loopback: false, others: false };
    this.askedAt = -Infinity;
    $("make-key").addEventListener("click", () => this.make());
    $("keys-head").replaceChildren(el("tr", {}, ...HEAD.map((text) => el("th", { scope: "col" }, text))));
  }

  async refresh() {
    if (performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    try {
      this.isThere ??= "/api/v1/keys" in (await get("/api/v1/openapi.json")).paths;
      if (this.isThere) this.take(await get("/api/v1/keys"));
    } catch {
      // the stream says what is wrong
    }
  }

  take({ keys, asked_on_loopback, asked_off_loopback, entries, entries_counted }) {
    this.asks = { loopback: asked_on_loopback, others: asked_off_loopback };
    if (JSON.stringify(keys) !== JSON.stringify(this.rows) || $("keys").hidden) {
      this.rows = keys;
      arrange(
        $("keys-rows"),
        keys.map((key) => this.row(key)),
      );
      $("keys-table").hidden = keys.length === 0;
    }
    $("keys").hidden = false;
    setText($("keys-note"), `${noteOf(this.asks, keys.length)}${keys.length ? counted(entries, entries_counted) : ""}`);
  }

  row(key) {
    const how = { type: "button", class: "quiet", "aria-label": `Revoke ${key.name}`, onclick: () => this.revoke(key.name) };
    const cells = [
      key.models.join(", ") || "all",
      key.expires_at ? day(key.expires_at) : "never",
      key.rate ?? "any",
      `${day(key.made_at)} at ${key.made_by_name || "another machine"}`,
      key.last_used ? ago(key.last_used) : "not yet",
      number(key.requests),
    ];
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, key.name),
      ...cells.map((cell) => el("td", {}, cell)),
      el("td", {}, el("button", how, "Revoke …")),
    );
  }

  refreshNow() {
    this.askedAt = -Infinity;
    return this.refresh();
  }

  revoke(name) {
    ask({
      title: `Revoke ${name}?`,
      text: "Every machine refuses this key from now on. This cannot be taken back; whoever uses it needs another one.",
      verb: "Revoke",
      what: "This",
      run: async () => {
        await post("/api/v1/keys/revoke", { name });
        if (this.made?.name === name) this.made = null;
        announce(`${name} is revoked.`);
        await this.refreshNow();
      },
    });
  }

  /** The dialog that makes one; `done(made)` instead of the dialog's own last page. */
  make() {
    const dialog = $("key");
    const heading = el("h2", { id: "key-title" }, "Make a key");
    if (!hasSession()) {
      dialog.replaceChildren(
        heading,
        ...needsSession("A key opens the machines to its holder. To make one"),
        el("div", { class: "buttons" }, closeButton(dialog)),
      );
      dialog.showModal();
      return;
    }
    const name = el("input", { id: "key-name", required: true, maxlength: "64", autocomplete: "off", spellcheck: "false" });
    const models = el("input", { id: "key-models", autocomplete: "off", spellcheck: "false", placeholder: "all" });
    const expires = select("key-expires", LIFETIMES);
    const rate = select("key-rate", RATES);
    const problem = el("p", { class: "problem", role: "alert" });
    const go = el("button", { class: "primary" }, "Make");
    const form = el(
      "form",
      {},
      heading,
      el("p", { class: "muted" }, "One a person, device or program: each can be revoked alone. All machines take it at once."),
      field("Name", name),
      field("Models, with commas between them", models),
      field("Expires", expires),
      field("Rate, at each machine", rate),
      problem,
      el("div", { class: "buttons" }, closeButton(dialog, "Cancel"), go),
    );
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      go.disabled = true;
      const wish = { name: name.value.trim(), models: listed(models.value) };
      if (expires.value) wish.lifetime_s = Number(expires.value);
      if (Number(rate.value)) Object.assign(wish, { requests: Number(rate.value), seconds: 60 });
      try {
        this.showMade(await post("/api/v1/keys/add", wish));
      } catch (error) {
        setText(problem, `That did not work: ${error.message}.`);
        go.disabled = false;
      }
    });
    dialog.replaceChildren(form);
    dialog.showModal();
  }

  showMade(made) {
    const dialog = $("key");
    this.made = { name: made.name, key: made.key };
    const secret = el("code", { class: "command", id: "key-text", tabindex: "0", "aria-label": "The key" }, made.key);
    dialog.replaceChildren(
      el("h2", { id: "key-title" }, `The key ${made.name}`),
      secret,
      copyButton("the key", () => made.key),
      el(
        "p",
        { class: "muted" },
        "Copy it now: it is not shown again. Clients send it as their API key. Until you leave this page, “Use it” has it too.",
      ),
      el("div", { class: "buttons" }, closeButton(dialog)),
    );
    announce(`The key ${made.name} is made.`);
    dialog.addEventListener("close", () => secret.remove(), { once: true });
    void this.refreshNow();
  }
}

function noteOf({ loopback, others }, n) {
  if (loopback) return "Every port asks for a key, but those of tcp://.";
  if (others) return "Ports that other machines reach ask for a key; those on loopback do not.";
  return n
    ? "No port asks for a key."
    : "No port asks for a key. As soon as there is one, ports that other machines reach ask for it.";
}

/** Where the use was counted; a node of an older version counts its own, and does not say so. */
function counted(entries, answered) {
  if (entries === undefined) return "";
  if (entries === answered) return " Use is counted at all machines, since each started.";
  return ` Use is counted at ${answered} of ${entries} machines, since each started: the others did not answer in time.`;
}

function listed(text) {
  return text
    .split(",")
    .map((part) => part.trim())
    .filter((part) => part);
}
