// The network's models: a row each, with the machines that have it, and those marked that have it in memory.

import { $, arrange, el, icon, setText } from "./dom.js";
import { count, firstToken, gibOf, nameOf, number, rate } from "./format.js";
import { get } from "./stream.js";

const EVERY_MS = 5_000; // as often as a node asks its servers
const AT_FIRST = 12; // models; the others when somebody wants them
const MACHINES = 6; // by name in a row; the others are counted
const HEAD = ["Model", "Machines", "Size", "Busy", "Requests", "First token", "Tokens/s"];

export class Models {
  /** `onNews()`: the models are others than before. */
  constructor(onNews) {
    this.rows = [];
    this.onNews = onNews;
    this.askedAt = -Infinity;
    this.isAll = false;
    this.more = el("button", { type: "button", class: "quiet", onclick: () => this.showAll(!this.isAll) });
    $("models-more").append(this.more);
  }

  /** Asks for them again if that was long ago. */
  async refresh() {
    if (performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    try {
      this.take((await get("/api/v1/models")).models);
    } catch {
      // the stream says what is wrong
    }
  }

  take(rows) {
    const isNews = JSON.stringify(rows) !== JSON.stringify(this.rows);
    this.rows = rows;
    if (!isNews) return;
    this.show();
    this.onNews();
  }

  /** Those of one machine: [{name, warm, size}], in memory first. */
  of(peerId) {
    const found = [];
    for (const { name, places } of this.rows) {
      const place = places.find((at) => at.peer_id === peerId);
      if (place) found.push({ name, warm: place.warm, size: place.size });
    }
    return found.sort((a, b) => b.warm - a.warm);
  }

  showAll(isAll) {
    this.isAll = isAll;
    this.show();
  }

  show() {
    $("models").hidden = this.rows.length === 0;
    const shown = this.isAll ? this.rows : this.rows.slice(0, AT_FIRST);
    arrange($("models-rows"), shown.map(row));
    this.more.hidden = this.rows.length <= AT_FIRST;
    setText(this.more, this.isAll ? "Show fewer" : `Show all ${number(this.rows.length)}`);
  }
}

export function head() {
  return el("tr", {}, ...HEAD.map((text) => el("th", { scope: "col" }, text)));
}

function row(model) {
  const cells = [
    el("div", { class: "places" }, ...placesOf(model.places)),
    gibOf(model.size),
    number(busyOf(model.places)),
    model.requests == null ? "–" : number(model.requests),
    firstToken(model.first_token_s),
    rate(model.tokens_per_s),
  ];
  return el("tr", {}, el("th", { scope: "row" }, model.name), ...cells.map((cell) => el("td", {}, cell)));
}

function placesOf(places) {
  const parts = places.slice(0, MACHINES).map((place) => mark(place.warm, nameOf(place), noteOf(place)));
  if (places.length > MACHINES) parts.push(el("span", { class: "muted" }, `and ${number(places.length - MACHINES)} more`));
  return parts;
}

/** A name with a sign for what is in memory; a screen reader hears it in words. */
export function mark(warm, name, note = "") {
  const where = el("span", { class: "unseen" }, warm ? ", in memory" : ", on disk");
  return el(
    "span",
    { class: warm ? "place warm" : "place", title: `${name}: ${warm ? "in memory" : "on disk"}` },
    icon(warm ? "good" : "idle"),
    el("span", {}, name, note),
    where,
  );
}

function noteOf({ state, service }) {
  const parts = [...(service === "default" ? [] : [`as ${service}`]), ...(state === "online" ? [] : [state])];
  return parts.length ? ` (${parts.join(", ")})` : "";
}

/** Of the machines that have it: a machine's requests are not told by model. */
function busyOf(places) {
  const busy = new Map(places.map((place) => [place.peer_id, place.in_flight]));
  return [...busy.values()].reduce((a, b) => a + b, 0);
}

/** For a card: "gemma, qwen in memory; 4 more". */
export function inShort(models) {
  const warm = models.filter((model) => model.warm).map(({ name }) => name);
  const rest = models.length - warm.length;
  if (!warm.length) return count(rest, "model") + " on disk";
  const named = `${warm.slice(0, 2).join(", ")}${warm.length > 2 ? ` and ${number(warm.length - 2)} more` : ""} in memory`;
  return rest ? `${named}, ${number(rest)} on disk` : named;
}
