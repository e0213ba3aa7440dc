// Newcomers that wait for somebody's yes, and the invites by which machines may still come; and the maker of an invite's code.

import { $, announce, arrange, copyButton, el, field, select, setText } from "./dom.js";
import { ask } from "./dialogs.js";
import { clock, day, duration, number } from "./format.js";
import { get, post } from "./stream.js";

const EVERY_MS = 2_000; // somebody sits at the newcomer and waits
const HEAD = ["Newcomer", "Peer id", "From", "Waits", ""];
const HOUR_S = 3_600;
const LIFETIMES = [
  ["an hour", HOUR_S],
  ["10 minutes", 600],
  ["a day", 24 * HOUR_S],
  ["a week", 168 * HOUR_S],
];

export class Newcomers {
  constructor() {
    this.told = new Set(); // peer ids that the page has announced
    this.isThere = null; // whether the node has invites at all; null: not known yet
    this.askedAt = -Infinity;
    this.shown = "";
    $("newcomers-head").replaceChildren(el("tr", {}, ...HEAD.map((text) => el("th", { scope: "col" }, text))));
  }

  async refresh() {
    if (performance.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = performance.now();
    try {
      this.isThere ??= "/api/v1/invites" in (await get("/api/v1/openapi.json")).paths;
      if (this.isThere) this.take(await get("/api/v1/invites"));
    } catch {
      // the stream says what is wrong
    }
  }

  take({ invites, waiting }) {
    const open = invites.filter(({ state }) => state === "open");
    $("newcomers").hidden = waiting.length + open.length === 0;
    $("newcomers-table").hidden = waiting.length === 0;
    setText($("newcomers-title"), waiting.length ? "Newcomers that wait for your yes" : "Open invites");
    const shape = JSON.stringify([waiting.map((row) => ({ ...row, waits_s: Math.floor(row.waits_s / 10) })), open]);
    if (shape !== this.shown) {
      this.shown = shape; // its buttons keep the focus
      arrange($("newcomers-rows"), waiting.map(rowOf(this)));
      arrange($("invites"), open.map(itemOf(this)));
    }
    const news = waiting.filter(({ peer_id }) => !this.told.has(peer_id));
    this.told = new Set(waiting.map(({ peer_id }) => peer_id));
    if (news.length) announce(`${news.map(nameOf).join(", ")} waits for your yes.`);
  }

  refreshNow() {
    this.askedAt = -Infinity;
    return this.refresh();
  }

  approve(newcomer) {
    ask({
      title: `Let ${nameOf(newcomer)} in?`,
      text: `It gets this network's token, and is a member then. Its name is its own choice; its id is ${newcomer.peer_id}: compare it with what that machine shows.`,
      verb: "Let it in",
      what: "This",
      run: () => this.decide("approve", newcomer, "is let in"),
    });
  }

  refuse(newcomer) {
    ask({
      title: `Turn ${nameOf(newcomer)} away?`,
      text: "This invite will not let this machine in any more. It is still good for others, until you revoke it.",
      verb: "Turn it away",
      what: "This",
      run: () => this.decide("refuse", newcomer, "is turned away"),
    });
  }

  async decide(verb, newcomer, said) {
    await post(`/api/v1/newcomers/${verb}`, { peer: newcomer.peer_id });
    announce(`${nameOf(newcomer)} ${said}.`);
    await this.refreshNow();
  }

  revoke({ id }) {
    ask({
      title: `Revoke the invite ${id}?`,
      text: "Its code lets nobody in from now on. Machines that came by it stay.",
      verb: "Revoke",
      what: "This",
      run: async () => {
        await post("/api/v1/invites/revoke", { id });
        announce(`The invite ${id} is revoked.`);
        await this.refreshNow();
      },
    });
  }
}

function nameOf({ name, peer_id }) {
  return name || peer_id.slice(-6);
}

function rowOf(page) {
  return (newcomer) => {
    const button = (text, label, act) =>
      el("button", { type: "button", class: "quiet", "aria-label": `${label} ${nameOf(newcomer)}`, onclick: act }, text);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, nameOf(newcomer)),
      el("td", { class: "mono" }, newcomer.peer_id),
      el("td", {}, newcomer.address),
      el("td", {}, duration(newcomer.waits_s)),
      el(
        "td",
        {},
        button("Yes …", "Let in", () => page.approve(newcomer)),
        " ",
        button("No …", "Turn away", () => page.refuse(newcomer)),
      ),
    );
  };
}

function itemOf(page) {
  return (invite) => {
    const left = invite.uses - invite.used.length;
    const until = new Date(invite.expires_at);
    return el(
      "li",
      {},
      `Invite ${invite.id}: ${number(left)} of ${number(invite.uses)} left, until ${day(until)}, ${clock(until)}` +
        (invite.approve ? ", asks you first" : ""),
      " ",
      el(
        "button",
        { type: "button", class: "quiet", "aria-label": `Revoke the invite ${invite.id}`, onclick: () => page.revoke(invite) },
        "Revoke …",
      ),
    );
  };
}

/** For "Add a machine": a code for one machine, instead of the token, which is for good. */
export function codeMaker() {
  const lifetime = select("code-lifetime", LIFETIMES);
  const approve = el("input", { id: "code-approve", type: "checkbox" });
  const problem = el("p", { class: "problem", role: "alert" });
  const made = el("div", { role: "status" });
  const go = el("button", { type: "button", id: "make-code" }, "Make a code");
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      const wish = { lifetime_s: Number(lifetime.value), uses: 1, approve: approve.checked };
      made.replaceChildren(...shown(await post("/api/v1/invites/add", wish)));
      setText(problem, "");
    } catch (error) {
      setText(problem, `That did not work: ${error.message}.`);
    }
    go.disabled = false;
  });
  return el(
    "details",
    { class: "one-machine" },
    el("summary", {}, "Or a code for one machine, which expires"),
    el("p", { class: "muted" }, "Paste it instead of the token. It is exchanged at this machine, which has to run and be reachable."),
    field("Good for", lifetime),
    el("p", {}, approve, " ", el("label", { for: "code-approve" }, "Ask me before it lets the machine in")),
    go,
    problem,
    made,
  );
}

function shown({ code, note }) {
  const text = el("code", { class: "command", id: "invite-code", tabindex: "0", "aria-label": "The code" }, code);
  return [text, copyButton("the code", () => code), ...(note ? [el("p", { class: "problem" }, note)] : [])];
}
