// One card a machine, kept from one state to the next.

import { $, arrange, el, icon, setAttribute, setIcon, setText } from "./dom.js";
import {
  count,
  gib,
  isGone,
  isUp,
  nameOf,
  needsAttention,
  number,
  pathOf,
  percent,
  servicesOf,
  shortId,
  stateOf,
  thing,
  things,
  vram,
} from "./format.js";
import { inShort } from "./models.js";
import { linkTo } from "./views.js";

const DENSE_FROM = 25; // machines: from here on a card is a line of facts, and the rest is in its details
const FILTER_FROM = 9;
const KINDS = [
  ["all", "All", () => true],
  ["up", "Online", isUp],
  ["trouble", "Needs attention", needsAttention],
];

class Card {
  constructor(peer, actions) {
    this.swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    this.name = el("a", { href: linkTo(peer.peer_id) });
    this.icon = icon("idle");
    this.stateText = el("span");
    this.state = el("span", { class: "state" }, this.icon, this.stateText);
    this.vram = meter("bar", "VRAM in use");
    this.load = el("span");
    this.fromHere = el("span", { class: "long" });
    this.share = meter("bar share", "Share of this machine's traffic");
    this.path = el("dd");
    this.models = el("dd");
    this.modelsRow = row("Models", this.models, "extra");
    this.note = el("span");
    this.foot = el("div", { class: "card-foot" }, this.note);
    const here = peer.self ? el("span", { class: "here" }, "this machine") : null;
    this.element = el(
      "li",
      { class: peer.self ? "card own" : "card" },
      el("div", { class: "card-head" }, el("h3", {}, this.swatch, this.name), here, this.state),
      el(
        "dl",
        { class: "rows" },
        row("VRAM", this.vram.element),
        row("Load", el("dd", {}, this.load, this.fromHere)),
        row("Share", this.share.element, "extra"),
        row("Path", this.path, "extra"),
        this.modelsRow,
      ),
      this.foot,
    );
    if (peer.self) {
      this.drain = el("button", { type: "button", onclick: actions.drain });
      this.foot.append(this.drain);
    }
  }

  update(peer, view) {
    const state = stateOf(peer);
    const gone = isGone(peer);
    setText(this.name, nameOf(peer));
    setAttribute(this.name, "title", `${nameOf(peer)} · ${peer.peer_id}`);
    setAttribute(this.element, "data-tone", state.tone);
    setAttribute(this.element, "data-state", peer.state);
    this.element.classList.toggle("gone", gone);
    setIcon(this.icon, state.icon);
    setText(this.stateText, state.label);
    this.state.classList.toggle("plain", peer.state === "online");
    setAttribute(this.swatch, "data-c", view.color);
    const used = peer.total_vram - peer.available_vram;
    if (gone) this.vram.set(null, "–");
    else
      this.vram.set(
        peer.total_vram > 0 ? used / peer.total_vram : null,
        vram(peer.available_vram, peer.total_vram),
        peer.total_vram > 0 ? `${gib(peer.available_vram)} GiB` : "no VRAM",
      );
    setText(this.load, gone ? "–" : openOf(peer));
    setText(
      this.fromHere,
      gone || peer.self || peer.in_flight_here === 0 ? "" : `, ${number(peer.in_flight_here)} from here`,
    );
    if (gone && !view.share) this.share.set(null, "–");
    else this.share.set(view.share, view.share == null ? "no traffic lately" : percent(view.share));
    setText(this.path, gone ? "–" : pathOf(peer));
    this.modelsRow.hidden = gone || view.models.length === 0;
    if (!this.modelsRow.hidden) setText(this.models, inShort(view.models));
    setText(this.note, noteOf(peer, view));
    this.note.classList.toggle("safe", view.drained === true);
    if (this.drain) setText(this.drain, peer.draining ? `Take ${thing()}s again` : "Drain …");
  }
}

function openOf(peer) {
  const limit = peer.capacity > 0 ? ` of ${number(peer.capacity)}` : "";
  return `${number(Math.max(peer.in_flight, peer.in_flight_here))}${limit} open`;
}

function noteOf(peer, { drained, clients }) {
  if (isGone(peer)) return peer.state === "left" ? "said good-bye" : "not heard of for a while";
  if (drained === true) return "Nothing open: safe to reboot";
  if (peer.draining) {
    const open = [];
    if (peer.in_flight) open.push(`${things(peer.in_flight)} served here`);
    if (clients) open.push(`${count(clients, "client")} of its own port`);
    return open.length ? `Still open: ${open.join(", ")}` : "";
  }
  return servicesOf(peer) || "offers nothing itself";
}

function row(label, dd, extra = "") {
  return el("div", { class: `row ${extra}` }, el("dt", {}, label), dd);
}

function meter(kind, label) {
  const bar = el("progress", { class: kind, max: "1", "aria-label": label });
  const text = el("span", { class: "long" });
  const short = el("span", { class: "short" });
  const element = el("dd", { class: "meter" }, bar, text, short);
  return {
    element,
    set(value, words, fewWords = words) {
      bar.hidden = value == null;
      if (value != null) setAttribute(bar, "value", Math.max(0, Math.min(1, value)).toFixed(3));
      setAttribute(bar, "aria-valuetext", words);
      setText(text, words);
      setText(short, fewWords);
    },
  };
}

export class Cards {
  /** `actions`: drain() */
  constructor(actions) {
    this.actions = actions;
    this.cards = new Map();
    this.kind = "all";
    this.chips = KINDS.map(([kind, label]) => {
      const text = el("span", {}, label);
      const chip = el("button", { type: "button", onclick: () => this.choose(kind) }, text);
      return { kind, label, chip, text };
    });
    $("chips").append(...this.chips.map(({ chip }) => chip));
    $("filter").addEventListener("input", () => this.show());
  }

  choose(kind) {
    this.kind = kind;
    this.show();
  }

  /** `views`: peer id -> {color, share, models, clients, drained}; the last two are of this machine */
  update(peers, views) {
    // This machine first, those that are gone last, by name between: nothing jumps while loads change.
    this.peers = [...peers].sort(
      (a, b) => b.self - a.self || isGone(a) - isGone(b) || nameOf(a).localeCompare(nameOf(b), undefined, { numeric: true }),
    );
    const known = new Set(peers.map((peer) => peer.peer_id));
    for (const id of this.cards.keys()) if (!known.has(id)) this.cards.delete(id);
    for (const peer of peers) {
      let card = this.cards.get(peer.peer_id);
      if (!card) this.cards.set(peer.peer_id, (card = new Card(peer, this.actions)));
      card.update(peer, views.get(peer.peer_id));
    }
    this.show();
  }

  show() {
    const words = $("filter").value.trim().toLowerCase();
    const [, , isKind] = KINDS.find(([kind]) => kind === this.kind);
    const shown = this.peers.filter((peer) => isKind(peer) && matches(peer, words));
    arrange(
      $("cards"),
      shown.map((peer) => this.cards.get(peer.peer_id).element),
    );
    $("cards").classList.toggle("dense", this.peers.length >= DENSE_FROM);
    $("filters").hidden = this.peers.length < FILTER_FROM && this.kind === "all" && !words;
    $("no-match").hidden = shown.length > 0;
    for (const { kind, label, chip, text } of this.chips) {
      const [, , isOf] = KINDS.find(([name]) => name === kind);
      setText(text, `${label} ${number(this.peers.filter(isOf).length)}`);
      setAttribute(chip, "aria-pressed", String(kind === this.kind));
    }
  }
}

function matches(peer, words) {
  if (!words) return true;
  const text = [peer.name, peer.peer_id, shortId(peer.peer_id), stateOf(peer).label, servicesOf(peer)]
    .join(" ")
    .toLowerCase();
  return words.split(/\s+/).every((word) => text.includes(word));
}
