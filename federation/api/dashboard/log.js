// The node's log: its newest lines, and those that come. For the owner alone: lines name clients and machines.

import { $, arrange, el, setAttribute, setText } from "./dom.js";
import { needsSession } from "./dialogs.js";
import { clock, number } from "./format.js";
import { get, hasSession } from "./stream.js";

const EVERY_MS = 2_000;
const AT_FIRST = 200;
const KEPT = 1000;
const AT_ONCE = 1000; // lines of one answer
const OWN = new Set(["timestamp", "level", "event", "logger", "number", "exception", "stack"]);
const TONES = { warning: "warn", error: "bad", critical: "bad" };

export class Log {
  constructor() {
    this.lines = []; // {line, text, element}, oldest first
    this.next = 0;
    this.isBusy = false;
    this.paused = false;
    this.askedAt = -Infinity;
    $("log-filter").addEventListener("input", () => this.draw());
    $("log-level").addEventListener("change", () => this.draw());
    $("log-pause").addEventListener("click", () => this.pause(!this.paused));
  }

  title() {
    return "Log";
  }

  show() {
    this.askedAt = -Infinity;
    void this.refresh();
  }

  /** Another run of the daemon counts its lines anew. */
  clear() {
    this.lines = [];
    this.next = 0;
    this.draw();
  }

  pause(on) {
    this.paused = on;
    setAttribute($("log-pause"), "aria-pressed", String(on));
    if (!on) this.show();
  }

  async refresh() {
    if (this.isBusy || this.paused || performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    $("log-body").hidden = $("log-tools").hidden = !hasSession();
    if (!hasSession()) {
      if (!$("log-note").firstElementChild) $("log-note").replaceChildren(...needsSession("The log"));
      return;
    }
    this.isBusy = true;
    try {
      const query = this.next ? `after=${this.next}&last=${AT_ONCE}` : `last=${AT_FIRST}`;
      const { lines, next } = await get(`/api/v1/logs?${query}`);
      this.next = next;
      this.lines = [...this.lines, ...lines.map((line) => ({ line, text: textOf(line) }))].slice(-KEPT);
      this.draw();
    } catch {
      // the stream says what is wrong; a session that ended is seen at the next look
    } finally {
      this.isBusy = false;
    }
  }

  draw() {
    const words = $("log-filter").value.trim().toLowerCase().split(/\s+/);
    const wanted = $("log-level").value;
    const shown = this.lines.filter(
      ({ line, text }) => (wanted === "all" || line.level in TONES) && words.every((word) => text.includes(word)),
    );
    const box = $("log-body");
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    arrange(
      $("log-lines"),
      shown.map((one) => (one.element ??= row(one.line))),
    );
    if (isAtEnd) box.scrollTop = box.scrollHeight;
    const all = this.lines.length;
    setText($("log-note"), shown.length === all ? `${number(all)} lines` : `${number(shown.length)} of ${number(all)} lines`);
  }
}

function fieldsOf(line) {
  return Object.entries(line).filter(([key]) => !OWN.has(key));
}

const wordOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function textOf(line) {
  return [line.level, line.event, ...fieldsOf(line).map(([key, value]) => `${key}=${wordOf(value)}`)].join(" ").toLowerCase();
}

function row(line) {
  const fields = fieldsOf(line).flatMap(([key, value]) => [" ", el("span", { class: "muted" }, `${key}=`), wordOf(value)]);
  const level = line.level in TONES ? el("b", { class: "level" }, `${line.level} `) : null;
  const trouble = line.exception ? el("pre", {}, ...line.exception.split("\n").flatMap((text) => [text, el("br")])) : null;
  return el(
    "li",
    { "data-tone": TONES[line.level] ?? null },
    el("time", { datetime: line.timestamp }, clock(new Date(line.timestamp))),
    el("span", {}, level, line.event, ...fields, trouble),
  );
}
