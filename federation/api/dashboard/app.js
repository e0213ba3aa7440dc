// The page: takes the daemon's events, keeps the newest, and shows it.

import { Alerts } from "./alerts.js";
import { Bans } from "./bans.js";
import { Cards } from "./cards.js";
import { Chart } from "./chart.js";
import { Checkup } from "./checkup.js";
import { Connections } from "./connections.js";
import { Decisions } from "./decisions.js";
import { confirmDrain, showInvite, tellJoined } from "./dialogs.js";
import { $, announce, arrange, copyable, el, icon, setAttribute, setIcon, setText } from "./dom.js";
import {
  clock,
  duration,
  gib,
  isGone,
  isUp,
  nameOf,
  number,
  scaled,
  setHttp,
  shortId,
  stateOf,
  thing,
  visible,
} from "./format.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { Log } from "./log.js";
import { MachinePage } from "./machine.js";
import { Newcomers } from "./newcomers.js";
import { head, Models } from "./models.js";
import { Past } from "./past.js";
import { follow, get, takeCode } from "./stream.js";
import { showUse, urlOf } from "./use.js";
import { Views } from "./views.js";

const OLLAMA = "federation join --backend 127.0.0.1:11434";

let state = null; // the newest {at, status, peers, rates}
let told = ""; // what is wrong with the address that this page was opened by
let seenAt = null; // when it came, by this machine's clock
const known = new Map(); // peer id -> its state in words, to tell of changes
const history = new History();
const chart = new Chart();
const decisions = new Decisions();
const cards = new Cards({
  drain: () => confirmDrain(own(), otherOffers(own().peer_id)),
});
const models = new Models(() => {
  setHttp(models.rows.length > 0);
  if (state) show();
});
const keys = new Keys();
const alerts = new Alerts();
const log = new Log();
const views = new Views(
  {
    machine: new MachinePage({ state: () => state, models: (id) => models.of(id), otherOffers }),
    connections: new Connections(),
    log,
    checkup: new Checkup(alerts),
    bans: new Bans(),
  },
  () => state && show(),
);
const newcomers = new Newcomers();
const own = () => state.peers.find((peer) => peer.self);
let past = null; // the last 24 hours, where the time line shows these
const PAST_EVERY_MS = 30_000;
let pastAt = -Infinity;

/** How many machines but that one offer each service. */
function otherOffers(peerId) {
  const offers = new Map();
  for (const peer of state.peers) {
    if (peer.peer_id === peerId || peer.state !== "online") continue;
    for (const [service, up] of Object.entries(peer.services)) if (up) offers.set(service, (offers.get(service) ?? 0) + 1);
  }
  return offers;
}

// What comes in

function onState(next) {
  if (state && (state.status.node.pid !== next.status.node.pid || state.status.node.uptime_s > next.status.node.uptime_s)) {
    decisions.clear(); // the daemon was restarted: its counters begin again
    history.clear();
    log.clear();
    keys.isThere = newcomers.isThere = null;
  }
  const isFirst = state === null;
  state = next;
  seenAt = new Date();
  history.add(next.at, next.peers);
  tellChanges(isFirst);
  alerts.look(next.at, next.peers);
  if (document.visibilityState !== "visible") return;
  show();
  void models.refresh();
  void keys.refresh();
  void newcomers.refresh();
  void views.refresh();
  void refreshPast();
}

async function refreshPast() {
  if (!past || performance.now() - pastAt < PAST_EVERY_MS) return;
  pastAt = performance.now();
  const answer = await get("/api/v1/history").catch(() => null); // the stream says what is wrong
  if (answer && past) past = new Past(answer, history.colors);
  show();
}

for (const button of $("spans").children) {
  button.addEventListener("click", () => {
    past = button.dataset.span === "day" ? (past ?? history) : null; // until it is here
    pastAt = -Infinity;
    for (const other of $("spans").children) setAttribute(other, "aria-pressed", String(other === button));
    if (past) void refreshPast();
    else show();
  });
}

function tellChanges(isFirst) {
  const news = [];
  for (const peer of state.peers) {
    const before = known.get(peer.peer_id);
    const now = stateOf(peer).label;
    if (before !== now && !isFirst) {
      news.push(before ? `${nameOf(peer)}: ${now.toLowerCase()}.` : `${nameOf(peer)} is new.`);
      if (!before) tellJoined(peer);
    }
    known.set(peer.peer_id, now);
  }
  if (news.length) announce(news.length > 4 ? `${news.length} machines changed.` : news.join(" "));
}

function onUp() {
  setText($("banner"), told);
  $("banner").hidden = !told;
  document.body.classList.remove("stale");
  setLive("good", "live");
  if (state) announce("Connected again.");
}

function onDown(error) {
  document.body.classList.add("stale");
  setLive("warn", "not connected");
  const since = seenAt ? ` What you see is from ${clock(seenAt)}.` : "";
  let text = `Lost the connection to this node; trying again.${since}`;
  if (error.status === 401)
    text =
      told ||
      "This page has no session. Run `federation dashboard` on the node's machine, and open the address that it prints.";
  else if (error.status) text = `The node refuses this page: ${error.message}. Trying again.`;
  else if (!seenAt) text = "Cannot reach the node; trying again. Is it running?";
  setText($("banner"), text);
  $("banner").hidden = false;
}

function setLive(tone, text) {
  setAttribute($("live"), "data-tone", tone);
  setIcon($("live").querySelector("svg"), tone === "good" ? "good" : "warn");
  setText($("live-text"), text);
}

// What is shown

function show() {
  const { status, peers } = state;
  const shares = history.shares();
  showHead(status);
  showFigures(status, peers);
  showWarnings(status.warnings);
  showFirst(status, peers);
  // As `federation drain --wait` has it: its own ports' clients would be cut by a reboot too.
  const clients = status.connections.now;
  const drained = status.node.draining && status.node.in_flight === 0 && clients === 0;
  cards.update(
    peers,
    new Map(
      peers.map((peer) => [
        peer.peer_id,
        {
          color: history.colors.get(peer.peer_id),
          share: shares.get(peer.peer_id),
          models: models.of(peer.peer_id),
          clients: peer.self ? clients : 0,
          drained: peer.self && drained,
        },
      ]),
    ),
  );
  for (const id of ["now", "machines"]) $(id).hidden = false;
  $("activity").hidden = !$("first").hidden && status.connections.total === 0;
  $("client-line").hidden = !$("first").hidden;
  const names = new Map(peers.map((peer) => [peer.peer_id, nameOf(peer)]));
  for (const { peer_id, name } of past?.answer?.machines ?? []) if (!names.has(peer_id)) names.set(peer_id, name || shortId(peer_id));
  const shown = past ?? history;
  if (shown.samples.length) chart.update(shown, (id) => names.get(id));
  showWords();
  setText($("timeline-note"), `last ${duration(shown.windowS())}`);
}

/** Requests where there are models, else connections. */
function showWords() {
  const one = thing();
  const title = `${one === "request" ? "Requests" : "Connections"} per machine`;
  setText($("timeline-title"), title);
  setAttribute($("legend"), "aria-label", `${title} now`);
  setText($("no-decisions"), `None yet. Each new ${one} shows up here, with the machine it went to and why.`);
}

function showHead({ node, network }) {
  const name = network.name || "Your network";
  setText($("network"), name);
  setText($("identity"), `seen from ${node.name || shortId(node.peer_id)}`);
  document.title = visible([views.title(), name, "federation"].filter((part) => part).join(" · "));
  setText($("footer"), `federation ${node.version} · up ${duration(node.uptime_s)} · network ${network.id}`);
  showListens(node.listeners);
}

let listens = "";
function showListens(entries) {
  if (JSON.stringify(entries) === listens) return; // its buttons keep the focus
  listens = JSON.stringify(entries);
  const parts = entries.map((port) => {
    const isNoUrl = port.address.startsWith("unix:") || port.scheme === "tcp";
    const where = copyable(isNoUrl ? port.address : urlOf(port), "the address for clients");
    return el("span", {}, where, entries.length > 1 ? ` for ${port.service} ` : null);
  });
  $("listens").replaceChildren(...parts);
}

function showFigures({ connections }, peers) {
  const there = peers.filter((peer) => !isGone(peer));
  const total = there.reduce((sum, peer) => sum + peer.total_vram, 0);
  const free = there.reduce((sum, peer) => sum + peer.available_vram, 0);
  const [bytes, unit] = scaled(state.rates.bytes_per_s);
  const figures = [
    [
      "Machines online",
      number(peers.filter(isUp).length),
      `of ${number(peers.filter((peer) => peer.state !== "left").length)}`,
    ],
    [thing() === "request" ? "Requests now" : "Connections now", number(connections.now), "through this machine"],
    [
      `New ${thing()}s`,
      number(state.rates.connections_per_s),
      connections.failed ? `per second; ${number(connections.failed)} turned away so far` : "per second",
    ],
    ["Traffic", bytes, `${unit}/s`],
    ["Free VRAM", gib(free), `of ${gib(total)} GiB`],
  ];
  const box = $("figures");
  if (box.children.length !== figures.length) {
    box.replaceChildren(...figures.map(() => el("div", {}, el("dt"), el("dd", {}, el("span"), " ", el("small")))));
  }
  figures.forEach(([label, value, unit], i) => {
    const [dt, dd] = box.children[i].children;
    setText(dt, label);
    setText(dd.firstChild, value);
    setText(dd.lastChild, unit);
  });
}

function showWarnings(warnings) {
  const list = $("warnings");
  list.hidden = warnings.length === 0;
  const kept = new Map([...list.children].map((item) => [item.textContent, item]));
  arrange(
    list,
    warnings.map((text) => kept.get(text) ?? el("li", {}, icon("warn"), el("span", {}, text))),
  );
}

/** What to do first, until there is a machine to go to and another one beside this. */
let first = "";
function showFirst({ node }, peers) {
  const offers = peers.some((peer) => !isGone(peer) && Object.keys(peer.services).length > 0);
  const others = peers.some((peer) => !peer.self && !isGone(peer));
  const used = state.status.connections.total > 0;
  $("first").hidden = offers && others;
  const shape = JSON.stringify([offers, others, used, node.listens]);
  if (first === shape) return;
  first = shape;
  const port = node.listeners.find(({ address, scheme }) => !address.startsWith("unix:") && scheme !== "tcp");
  const step = (done, title, text, ...todo) =>
    el(
      "li",
      { class: done ? "done" : null },
      el("h3", {}, title, done ? el("span", { class: "unseen" }, " (done)") : null),
      el("p", {}, text),
      el("div", { class: "do" }, ...todo),
    );
  $("first").replaceChildren(
    el("h2", { id: "first-title" }, others ? "No machine offers a server yet" : "This is the only machine so far"),
    el("p", {}, "Three steps, in any order. This page shows each as it is done."),
    el(
      "ol",
      { class: "steps" },
      step(
        offers,
        "Offer a server",
        "Start the node beside an inference server, for example Ollama, on this machine or another:",
        copyable(OLLAMA, "the command"),
      ),
      step(
        others,
        "Add a machine",
        "One command there, and it finds this one.",
        el("button", { type: "button", class: "primary", onclick: showInvite }, "Add a machine"),
      ),
      step(
        used,
        "Use it",
        "Point any client at this machine, or at any other of the network:",
        port ? copyable(urlOf(port), "the address for clients") : null,
      ),
    ),
  );
}

$("add").addEventListener("click", showInvite);
$("use-it").addEventListener("click", () => showUse(keys));
$("models-head").append(head());
document.addEventListener("visibilitychange", () => state && document.visibilityState === "visible" && show());
told = (await takeCode()) ?? "";
views.go(false);
addEventListener("hashchange", async () => {
  const problem = await takeCode();
  if (problem === null) views.go(true);
  if (problem === "") location.reload();
  else if (problem !== null) {
    told = problem;
    setText($("banner"), told);
    $("banner").hidden = false;
  }
});
decisions.redraw();
get("/api/v1/explain?last=50").then(
  (answer) => answer.decisions.forEach((decision) => decisions.add(decision)),
  () => {},
); // the stream says why not
// All that the node still has: after a reload the time line is there at once.
follow("/api/v1/events", "0", {
  onEvent: (name, data) => (name === "state" ? onState(data) : name === "decision" ? decisions.add(data) : null),
  onUp,
  onDown,
});
