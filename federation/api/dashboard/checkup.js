// What is wrong with this node and what to do about it, as `federation doctor` finds it; and who is told when a machine dies.

import { $, announce, arrange, copyable, el, icon, setText } from "./dom.js";
import { ask, needsSession } from "./dialogs.js";
import { clock, count } from "./format.js";
import { get, hasSession, post } from "./stream.js";

const LEVELS = {
  fail: { tone: "bad", icon: "bad", label: "wrong" },
  warn: { tone: "warn", icon: "warn", label: "to look at" },
  info: { tone: "idle", icon: "idle", label: "to know" },
  ok: { tone: "good", icon: "good", label: "fine" },
};
const ORDER = Object.keys(LEVELS);
const COMMAND = /^(federation|sudo|ulimit|timedatectl) /;

export class Checkup {
  /** `browser`: the notices of this browser (alerts.js). */
  constructor(browser) {
    this.browser = browser;
    this.isBusy = false;
    $("examine").addEventListener("click", () => this.examine());
    $("notices-test").addEventListener("click", () => this.tryOut());
    $("alerts").addEventListener("click", () => this.toggle());
  }

  title() {
    return "Check-up";
  }

  show() {
    void this.showNotices();
    void this.examine();
    this.showBrowser();
  }

  async examine() {
    if (this.isBusy) return;
    if (!hasSession()) {
      $("findings-note").replaceChildren(...needsSession("The check-up asks this machine's peers. It"));
      $("examine").hidden = true;
      return;
    }
    this.isBusy = $("examine").disabled = true;
    setText($("findings-note"), "Looking; this node asks its peers …");
    try {
      const { findings } = await post("/api/v1/doctor");
      const sorted = [...findings].sort((a, b) => ORDER.indexOf(a.severity) - ORDER.indexOf(b.severity));
      arrange($("findings"), sorted.map(item));
      const wrong = findings.filter(({ severity }) => severity === "fail").length;
      const odd = findings.filter(({ severity }) => severity === "warn").length;
      const text = `${count(wrong, "thing")} wrong, ${odd} to look at`;
      setText($("findings-note"), `${text}; at ${clock(new Date())}`);
      announce(`Check-up: ${text}.`);
    } catch (error) {
      setText($("findings-note"), `That did not work: ${error.message}.`);
    } finally {
      this.isBusy = $("examine").disabled = false;
    }
  }

  async showNotices() {
    const told = await get("/api/v1/notices").catch(() => null);
    $("notices-test").hidden = !told?.to;
    setText($("notices-note"), told ? noteOf(told) : "This node's version sends no notices.");
  }

  tryOut() {
    ask({
      title: "Send a test message?",
      text: "It says that it is a test.",
      verb: "Send",
      what: "Sending one",
      run: async () => {
        await post("/api/v1/notices/test");
        announce("The test message arrived.");
        await this.showNotices();
      },
    });
  }

  async toggle() {
    await this.browser.toggle();
    this.showBrowser();
  }

  showBrowser() {
    setText($("alerts-note"), this.browser.note());
    setText($("alerts"), this.browser.isOn ? "Stop telling me" : "Tell me in this browser");
    $("alerts").hidden = !this.browser.isPossible;
    $("alerts").setAttribute("aria-pressed", String(this.browser.isOn));
  }
}

function noteOf({ to, tells, told, waiting, problem }) {
  if (!to) return "This node tells nobody: it was started without --notify-url (an ntfy topic, Slack, any webhook).";
  if (problem) return `${problem}. ${count(waiting, "event")} to be told; it is tried again.`;
  const who = tells ? "this node is the one that tells" : "another node with an address tells";
  return `To ${to}; ${who}. ${count(told, "message")} so far.`;
}

function item({ check, severity, finding, fix }) {
  const level = LEVELS[severity] ?? LEVELS.info;
  const words = el("span", { class: "unseen" }, ` (${level.label})`);
  return el(
    "li",
    { "data-tone": level.tone },
    el("span", { class: "state" }, icon(level.icon)),
    el("div", {}, el("h3", {}, check, words), el("p", {}, finding), fix ? el("p", { class: "fix" }, ...fixOf(fix)) : null),
  );
}

/** A fix in words; its `commands` as such, to copy. */
function fixOf(fix) {
  if (COMMAND.test(fix) && !fix.includes("`")) {
    const [command, ...rest] = fix.split(/(?= \(|;| before )/);
    return [copyable(command, "the command"), rest.join("")];
  }
  return fix.split("`").map((part, i) => (i % 2 ? copyable(part, "the command") : part));
}
