// The last decisions: which machine each request or connection went to, and why, newest first.

import { $, arrange, el, setAttribute, setText } from "./dom.js";
import { clock, duration, gib, number, outcomeOf, reason, shortId } from "./format.js";
import { get } from "./stream.js";

const KEPT = 50;
const REDRAW_MS = 500; // thousands a second are only read as a blur anyway

export class Decisions {
  constructor() {
    this.items = []; // {decision, element}, newest first
    this.held = []; // what came while the list is paused, newest first
    this.missed = 0; // how many came; more than are kept
    this.waiting = 0;
    this.paused = false;
    $("pause").addEventListener("click", () => this.pause(!this.paused));
  }

  /** Another run of the daemon: what came before is no longer its own. */
  clear() {
    this.items = this.held = [];
    this.redrawSoon();
  }

  add(decision) {
    const item = { decision, key: keyOf(decision), at: Date.parse(decision.at), element: null };
    if ([...this.items, ...this.held].some(({ key }) => key === item.key)) return; // told again after a reconnect
    if (this.paused) {
      this.held = newest([item, ...this.held]);
      this.missed++;
    } else {
      this.items = newest([item, ...this.items]);
    }
    this.redrawSoon();
  }

  pause(on) {
    this.paused = on;
    this.items = newest([...this.held, ...this.items]);
    this.held = [];
    this.missed = 0;
    this.redraw();
  }

  redrawSoon() {
    this.waiting ||= setTimeout(() => {
      this.waiting = 0;
      this.redraw();
    }, REDRAW_MS);
  }

  redraw() {
    for (const item of this.items) item.element ??= row(item.decision);
    arrange(
      $("decisions"),
      this.items.map(({ element }) => element),
    );
    $("no-decisions").hidden = this.items.length > 0;
    $("pause").hidden = this.items.length === 0;
    setAttribute($("pause"), "aria-pressed", String(this.paused));
    setText($("pause"), this.missed ? `Pause, ${number(this.missed)} newer` : "Pause");
  }
}

/** One that was sent back by its peer is made again. */
function keyOf({ id, request, attempt, chosen }) {
  return `${id}/${request}/${attempt}/${chosen}`;
}

function newest(items) {
  return items.sort((a, b) => b.at - a.at).slice(0, KEPT);
}

function row(decision) {
  const at = new Date(decision.at);
  const retry = decision.attempt > 1 ? el("span", { class: "tag" }, `try ${decision.attempt}`) : null;
  const model = decision.model ? el("span", { class: "muted" }, ` ${decision.model} `) : null;
  const who = el("span", {}, el("b", {}, decision.name || shortId(decision.chosen)), " ", model, retry);
  const details = el(
    "details",
    {},
    el(
      "summary",
      {},
      el("div", { class: "decision-line" }, who, el("time", { datetime: decision.at }, clock(at))),
      el("p", { class: "decision-why" }, reason(decision)),
    ),
  );
  // Candidates are many and seldom read: made when somebody looks.
  details.addEventListener("toggle", () => tell(details, decision), { once: true });
  return el("li", {}, details);
}

async function tell(details, decision) {
  const outcome = el("p", { class: "muted" }, " ");
  const box = el("div", { class: "more" }, outcome, candidates(decision));
  details.append(box);
  try {
    const { decisions } = await get(`/api/v1/explain?id=${decision.id}`); // as it is now: it may have ended meanwhile
    setText(outcome, outcomeOf(decisions.find((other) => keyOf(other) === keyOf(decision)) ?? decision));
  } catch {
    outcome.textContent = "How it went on is no longer known.";
  }
}

function candidates(decision) {
  const head = ["Machine", "Open", "Last used", "Free VRAM", "Served"];
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": "All that could have taken it" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)))),
      el(
        "tbody",
        {},
        ...decision.candidates.map((c) =>
          el(
            "tr",
            { class: c.peer_id === decision.chosen ? "chosen" : null },
            el("td", {}, c.name || shortId(c.peer_id)),
            el("td", {}, number(c.in_flight)),
            el("td", {}, c.last_used_age_s == null ? "never" : `${duration(c.last_used_age_s)} before`),
            el("td", {}, `${gib(c.available_vram)} GiB`),
            el("td", {}, number(c.served)),
          ),
        ),
      ),
    ),
  );
}
