// Notices of this browser: when a machine dies or is back, while this page is open somewhere.

import { nameOf } from "./format.js";

const KEPT = "federation.alerts"; // "on", in this browser
const DEAD = new Set(["unreachable", "offline", "suspect", "backend down"]);
const AFTER_S = 20; // a restart of a daemon is no death
const GONE = new Set(["left", "banned"]);

export class Alerts {
  constructor() {
    this.rows = new Map(); // peer id -> {since, isDead, isTold}
    this.nodeDownSince = null;
  }

  /** Browsers have notifications on loopback and over TLS alone. */
  get isPossible() {
    return "Notification" in window && isSecureContext;
  }

  get isOn() {
    return this.isPossible && Notification.permission === "granted" && localStorage.getItem(KEPT) === "on";
  }

  note() {
    if (!this.isPossible) return "Browsers notify on loopback and over TLS alone (--tls-cert): not at this address.";
    if (Notification.permission === "denied") return "This browser was told not to show notifications of this page.";
    if (this.isOn) return "This browser tells you when a machine is away for 20 s, as long as this page is open in a tab.";
    return "This browser can tell you when a machine dies, as long as this page is open in a tab.";
  }

  async toggle() {
    if (this.isOn) localStorage.removeItem(KEPT);
    else if ((await Notification.requestPermission()) === "granted") localStorage.setItem(KEPT, "on");
  }

  /** Once a state; `at` in seconds. Tells each death and each return once. */
  look(at, peers) {
    const here = new Set(peers.map(({ peer_id }) => peer_id));
    for (const id of this.rows.keys()) if (!here.has(id)) this.rows.delete(id);
    for (const peer of peers) {
      if (peer.self) continue;
      if (GONE.has(peer.state)) {
        this.rows.delete(peer.peer_id);
        continue;
      }
      const isDead = DEAD.has(peer.state);
      const row = this.rows.get(peer.peer_id);
      if (!row) {
        this.rows.set(peer.peer_id, { since: at, isDead, isTold: isDead }); // dead from before: nothing new
        continue;
      }
      if (row.isDead !== isDead) Object.assign(row, { since: at, isDead });
      if (row.isTold === isDead || at - row.since < AFTER_S) continue;
      row.isTold = isDead;
      this.tell(peer.peer_id, isDead ? `${nameOf(peer)} does not answer` : `${nameOf(peer)} is back`);
    }
  }

  tell(tag, title) {
    if (!this.isOn) return;
    try {
      new Notification(title, { tag, icon: "/static/icon.svg" });
    } catch {
      // a phone's browser has them for service workers only
    }
  }
}
