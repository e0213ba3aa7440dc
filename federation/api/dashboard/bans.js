// The machines that this node keeps away.

import { $, announce, arrange, el } from "./dom.js";
import { ask } from "./dialogs.js";
import { day, nameOf, shortId } from "./format.js";
import { get, post } from "./stream.js";

const EVERY_MS = 5_000;
const HEAD = ["Name then", "Peer id", "Since", ""];

export class Bans {
  constructor() {
    this.askedAt = -Infinity;
    $("bans-head").replaceChildren(el("tr", {}, ...HEAD.map((text) => el("th", { scope: "col" }, text))));
  }

  title() {
    return "Bans";
  }

  show() {
    this.askedAt = -Infinity;
    void this.refresh();
  }

  async refresh() {
    if (performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    const answer = await get("/api/v1/banned").catch(() => null); // the stream says what is wrong
    if (!answer) return;
    const rows = JSON.stringify(answer.banned);
    if (rows === this.rows) return; // its buttons keep the focus
    this.rows = rows;
    arrange(
      $("bans-rows"),
      answer.banned.map((one) => this.row(one)),
    );
    $("bans-table").hidden = answer.banned.length === 0;
    $("bans-none").hidden = answer.banned.length > 0;
  }

  row(one) {
    const name = one.name || shortId(one.peer_id);
    const how = { type: "button", class: "quiet", "aria-label": `Let ${name} in again`, onclick: () => this.unban(one, name) };
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, name),
      el("td", { class: "mono" }, one.peer_id),
      el("td", {}, day(one.since)),
      el("td", {}, el("button", how, "Let in …")),
    );
  }

  unban({ peer_id }, name) {
    ask({
      title: `Let ${name} in again?`,
      text: "This node takes connections with it again, if it still has the network's token.",
      verb: "Let in",
      what: "This",
      run: async () => {
        await post("/api/v1/unban", { peer: peer_id });
        announce(`${name} may come again.`);
        this.show();
      },
    });
  }
}

/** From a machine's page. */
export function confirmBan(peer) {
  ask({
    title: `Ban ${nameOf(peer)}?`,
    text:
      "This node cuts its connection with it, and makes no other one. The other machines keep it: to put it out of the " +
      "network, rotate the token.",
    warning: peer.in_flight_here ? "What this machine's clients have open there is cut." : null,
    verb: "Ban",
    what: "A ban",
    run: async () => {
      await post("/api/v1/ban", { peer: peer.peer_id });
      announce(`${nameOf(peer)} is banned here.`);
    },
  });
}
