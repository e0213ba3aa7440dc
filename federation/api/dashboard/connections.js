// The clients of this node's own ports, now: who, what for, at which machine, for how long.

import { $, arrange, el, setText } from "./dom.js";
import { bytes, count, duration, number, shortId, thing } from "./format.js";
import { get } from "./stream.js";
import { linkTo } from "./views.js";

const EVERY_MS = 2_000;
const MOST = 200;
const HEAD = ["Client", "State", "For", "Machine", "Since", "In", "Out", "Tries"];

/** A table that shows connections, and keeps the rows of those that go on. */
export class Table {
  constructor(head, body) {
    this.body = body;
    this.rows = new Map(); // id -> {element, cells}
    head.replaceChildren(el("tr", {}, ...HEAD.map((text) => el("th", { scope: "col" }, text))));
  }

  show(connections) {
    const ids = new Set(connections.map(({ id }) => id));
    for (const id of this.rows.keys()) if (!ids.has(id)) this.rows.delete(id);
    arrange(
      this.body,
      connections.map((one) => this.row(one)),
    );
  }

  row(one) {
    let row = this.rows.get(one.id);
    if (!row) {
      const client = el("th", { scope: "row" });
      const machine = el("a");
      const cells = HEAD.slice(1).map((name) => el("td", {}, name === "Machine" ? machine : null));
      row = { element: el("tr", {}, client, ...cells), client, machine, cells };
      this.rows.set(one.id, row);
    }
    setText(row.client, one.client);
    row.machine.hidden = !one.peer;
    if (one.peer) row.machine.href = linkTo(one.peer);
    setText(row.machine, one.peer ? one.name || shortId(one.peer) : "");
    const what = [one.model || one.service, ...(one.request > 1 ? [`request ${number(one.request)}`] : [])].join(", ");
    const told = [one.state, what, null, duration(one.since_s), bytes(one.received), bytes(one.delivered), number(one.attempts)];
    told.forEach((text, i) => text !== null && setText(row.cells[i], text));
    return row.element;
  }
}

/** Asks for the connections, at most every EVERY_MS; null where it is not time yet, or the node does not answer. */
export class Connections {
  constructor() {
    this.askedAt = -Infinity;
    this.table = new Table($("connections-head"), $("connections-rows"));
  }

  show() {
    this.askedAt = -Infinity;
    void this.refresh();
  }

  title() {
    return "Connections";
  }

  async refresh() {
    if (performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    const answer = await get(`/api/v1/connections?limit=${MOST}`).catch(() => null); // the stream says what is wrong
    if (!answer) return;
    const { total, connections } = answer;
    this.table.show(connections);
    $("connections-table").hidden = connections.length === 0;
    const waiting = connections.filter(({ state }) => state === "waiting").length;
    const parts = [`${count(total, "client")} of this machine's own ports`];
    if (waiting) parts.push(`${number(waiting)} without a machine yet`);
    if (total > connections.length) parts.push(`the oldest ${number(connections.length)} are shown`);
    setText($("connections-note"), total ? parts.join("; ") : `No ${thing()} is open at this machine's own ports.`);
  }
}
