// A machine's page: what it is and does, its last 24 hours, what this node's clients have there, and what can be done with it.

import { confirmBan } from "./bans.js";
import { Table } from "./connections.js";
import { $, copyButton, copyable, el, icon, setAttribute, setIcon, setText } from "./dom.js";
import { confirmDrain, confirmOrder } from "./dialogs.js";
import {
  clock, duration, gib, gibOf, nameOf, number, pathOf, percent, servicesOf, stateOf, things, vram,
} from "./format.js";
import { mark } from "./models.js";
import { summary } from "./past.js";
import { get } from "./stream.js";

const HISTORY_EVERY_MS = 30_000;
const SOON_MS = 3_000;
const CONNECTIONS_EVERY_MS = 2_000;
const MOST = 1000;
const HEIGHT = 160; // as in style.css
const NEVER = ["left", "offline", "banned"];

export class MachinePage {
  /** `state()`: the newest, or null; `models(peerId)`; `otherOffers(peerId)`: service -> how many others offer it. */
  constructor({ state, models, otherOffers }) {
    this.state = state;
    this.models = models;
    this.otherOffers = otherOffers;
    this.peerId = "";
    this.plot = null;
    this.table = new Table($("machine-connections-head"), $("machine-connections-rows"));
    this.link = copyButton("the link to this page", () => location.href);
    this.link.lastElementChild.textContent = "Copy link";
    this.drain = el("button", { type: "button", onclick: () => this.order() });
    this.ban = el("button", { type: "button", onclick: () => confirmBan(this.peer) }, "Ban …");
    $("machine-actions").replaceChildren(this.link, this.drain, this.ban);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width > 0 && this.answer) this.plot ? this.plot.setSize({ width: contentRect.width, height: HEIGHT }) : this.draw();
    }).observe($("machine-load"));
  }

  get peer() {
    return this.state()?.peers.find(({ peer_id }) => peer_id === this.peerId);
  }

  title() {
    return this.peer ? nameOf(this.peer) : "A machine";
  }

  show(peerId) {
    if (peerId !== this.peerId) {
      this.answer = null;
      this.plot?.destroy();
      this.plot = null;
    }
    this.peerId = peerId;
    this.historyAt = this.connectionsAt = -Infinity;
    this.refresh();
  }

  refresh() {
    const peer = this.peer;
    $("machine-there").hidden = $("machine-actions").hidden = !peer;
    $("machine-not").hidden = Boolean(peer) || !this.state();
    if (!peer) {
      setText($("machine-title"), "A machine");
      return;
    }
    this.showFacts(peer);
    void this.refreshHistory();
    void this.refreshConnections();
  }

  showFacts(peer) {
    const state = stateOf(peer);
    setText($("machine-title"), nameOf(peer));
    setAttribute($("machine-state"), "data-tone", state.tone);
    setIcon($("machine-state").querySelector("svg"), state.icon);
    setText($("machine-state-text"), state.label);
    setText($("machine-says"), state.says);
    const owner = this.state().status.network.owner_here === true;
    this.drain.hidden = !peer.self && (NEVER.includes(peer.state) || !owner);
    setText(this.drain, peer.draining ? "Undrain …" : "Drain …");
    this.ban.hidden = peer.self || peer.state === "banned";
    $("machine-hint").hidden = peer.self || owner || NEVER.includes(peer.state);
    this.tellFacts(factsOf(peer, this.models(peer.peer_id)));
    if (this.commandOf === peer.peer_id) return;
    this.commandOf = peer.peer_id;
    const command = `federation drain --node ${peer.peer_id.slice(-12)} --owner-key FILE`;
    $("machine-command").replaceChildren(copyable(command, "the command"));
  }

  /** Changes only what is another than before: its buttons keep the focus. */
  tellFacts(facts) {
    const terms = facts.map(([term]) => term).join();
    const box = $("machine-facts");
    if (terms !== this.terms) {
      this.terms = terms;
      this.told = [];
      box.replaceChildren(...facts.flatMap(([term]) => [el("dt", {}, term), el("dd")]));
    }
    facts.forEach(([, text, make], i) => {
      if (this.told[i] === text) return;
      this.told[i] = text;
      box.children[2 * i + 1].replaceChildren(make ? make() : el("span", {}, text));
    });
  }

  order() {
    const peer = this.peer;
    if (peer.self) confirmDrain(peer, this.otherOffers(peer.peer_id));
    else confirmOrder(peer, this.otherOffers(peer.peer_id));
  }

  async refreshConnections() {
    if (performance.now() - this.connectionsAt < CONNECTIONS_EVERY_MS) return;
    this.connectionsAt = performance.now();
    const answer = await get(`/api/v1/connections?limit=${MOST}`).catch(() => null);
    if (!answer) return;
    const there = answer.connections.filter(({ peer }) => peer === this.peerId);
    this.table.show(there.slice(0, 50));
    $("machine-connections").hidden = there.length === 0;
    setText(
      $("machine-connections-note"),
      there.length ? `${things(there.length)} of this node's own clients` : "None of this node's own clients is there now.",
    );
  }

  async refreshHistory() {
    if (performance.now() - this.historyAt < HISTORY_EVERY_MS) return;
    this.historyAt = performance.now();
    const peerId = this.peerId;
    const answer = await get(`/api/v1/history?peer=${encodeURIComponent(peerId)}`).catch(() => null);
    if (peerId !== this.peerId) return;
    const told = answer?.machine && summary(answer.machine, answer.step_s);
    this.answer = told ? answer : null;
    if (!told) this.historyAt -= HISTORY_EVERY_MS - SOON_MS; // it may have come just now
    $("machine-load").hidden = !told;
    setText($("machine-past"), told ? inWords(told) : "Nothing is kept of it yet: this node had no connection with it in the last 24 hours, or it came just now.");
    if (told) this.draw();
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    const box = $("machine-load");
    if (!this.answer || box.clientWidth === 0) return;
    const { at, step_s: step, machine } = this.answer;
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = { stroke: color("--muted"), ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const span = Math.max(3600, machine.load.length * step);
    this.plot = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        padding: [8, 8, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: true, range: (_plot, _min, max) => [max - span, max] },
          y: { range: (_plot, _min, max) => [0, Math.max(4, Math.ceil((max ?? 0) * 1.15))] },
          part: { range: [0, 1] },
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            size: 28,
            splits: (plot) => [0.8, 0.4].map((mark) => plot.scales.x.max - mark * span),
            values: () => [0.8, 0.4].map((mark) => `${duration(mark * span)} ago`),
          },
          { ...axis, grid: { stroke: color("--line"), width: 1 }, size: 42, values: (_plot, ns) => ns.map(number) },
        ],
        series: [
          {},
          { scale: "part", fill: color("--bad"), width: 0, points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) },
          {
            stroke: color("--c0"), width: 1.5, fill: `${color("--c0")}55`, points: { show: false },
            paths: uPlot.paths.stepped({ align: 1 }),
          },
        ],
      },
      [machine.load.map((_, i) => at + i * step), machine.well.map((n) => (n === null || n === 1 ? null : 1 - n)), machine.load],
      box,
    );
    setAttribute(box, "aria-label", `Load of ${machine.name || "this machine"}. ${$("machine-past").textContent}`);
  }
}

function inWords({ mean, most, well, unwellS, coversS }) {
  const away = unwellS >= 1 ? `; it was away, or its server was, for ${duration(unwellS)} (there ${percent(well)} of the time)` : "; always there";
  return `In ${duration(coversS)}: ${number(mean)} open on average, ${number(most)} at most${away}.`;
}

/** [term, text, what makes its element, if it is more than the text]. */
function factsOf(peer, models) {
  const gpus = (peer.gpus ?? []).map((gpu) => `${gpu.name} (${gib(gpu.available_vram)} of ${gib(gpu.total_vram)} GiB free)`);
  const load =
    `${things(peer.in_flight)} there, ${number(peer.in_flight_here)} of them from here` +
    (peer.capacity ? `, at most ${number(peer.capacity)}` : "");
  const addresses = peer.addresses.length ? peer.addresses : ["none"];
  const seen = peer.self ? "now" : peer.online ? "now" : `${duration(peer.last_seen_age_s)} ago, ${clock(new Date(peer.last_seen))}`;
  return [
    ["Services", servicesOf(peer) || "none"],
    ...(models.length ? [["Models", JSON.stringify(models), () => el("ul", {}, ...models.map(modelItem))]] : []),
    ["VRAM", vram(peer.available_vram, peer.total_vram)],
    ["GPUs", gpus.join(", ") || "none"],
    ["Load", load],
    ["Served", `${things(peer.served)} from this machine`],
    ["Path", pathOf(peer)],
    ["Last seen", seen],
    ["Version", peer.version || "unknown"],
    ["Peer id", peer.peer_id, () => copyable(peer.peer_id, "the peer id")],
    ["Addresses", addresses.join(" "), () => el("ul", {}, ...addresses.map((at) => el("li", { class: "mono" }, at)))],
  ];
}

function modelItem({ name, warm, size }) {
  return el("li", {}, mark(warm, name), size ? el("span", { class: "muted" }, ` ${gibOf(size)}`) : null);
}
