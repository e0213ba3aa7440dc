// The last minutes: what the time line and the shares are made from. No DOM.

const KEPT_S = 300;
const WINDOWS_S = [60, 150, KEPT_S];
const SHARE_OVER_S = 60;
export const LINES = 7; // machines with a colour of their own; the others are one line together

export class History {
  constructor() {
    this.samples = []; // {at, open: Map id -> connections, served: Map id -> connections}
    this.colors = new Map(); // peer id -> slot
  }

  get span() {
    return "the last minutes";
  }

  clear() {
    this.samples = [];
    this.colors.clear();
  }

  add(at, peers) {
    const last = this.samples.at(-1);
    if (last && at <= last.at) return;
    this.samples.push({
      at,
      open: new Map(peers.map((peer) => [peer.peer_id, Math.max(peer.in_flight, peer.in_flight_here)])),
      served: new Map(peers.map((peer) => [peer.peer_id, peer.served])),
    });
    while (this.samples[0].at < at - KEPT_S) this.samples.shift();
    this.assignColors();
  }

  /** The busiest keep their colours; one that falls behind gives its colour to who overtook it. */
  assignColors() {
    const sums = new Map();
    for (const sample of this.samples) for (const [id, n] of sample.open) sums.set(id, (sums.get(id) ?? 0) + n);
    const newest = this.samples.at(-1).open;
    const rank = (id) => sums.get(id) + (this.colors.has(id) ? 0.5 : 0); // no flicker between equals
    const best = [...newest.keys()].sort((a, b) => rank(b) - rank(a)).slice(0, LINES);
    for (const id of [...this.colors.keys()]) if (!best.includes(id)) this.colors.delete(id);
    const free = [...Array(LINES).keys()].filter((slot) => ![...this.colors.values()].includes(slot));
    for (const id of best) if (!this.colors.has(id)) this.colors.set(id, free.shift());
  }

  /** peer id -> share of the connections that this machine handed out lately; null when there were none. */
  shares() {
    const { served, at } = this.samples.at(-1);
    const before = this.samples.find((sample) => sample.at >= at - SHARE_OVER_S).served;
    const given = new Map([...served].map(([id, n]) => [id, Math.max(0, n - (before.get(id) ?? 0))]));
    const all = [...given.values()].reduce((a, b) => a + b, 0);
    return new Map([...given].map(([id, n]) => [id, all > 0 ? n / all : null]));
  }

  /** How much of the past to show: what there is, in few steps. */
  windowS() {
    const span = this.samples.at(-1).at - this.samples[0].at;
    return WINDOWS_S.find((s) => s >= span) ?? KEPT_S;
  }

  /** [{id or null for the others, slot}] in the order of their slots. */
  lines() {
    const own = [...this.colors].map(([id, slot]) => ({ id, slot })).sort((a, b) => a.slot - b.slot);
    const hasOthers = this.samples.at(-1).open.size > own.length;
    return hasOthers ? [...own, { id: null, slot: LINES }] : own;
  }

  /** One array of counts a line; null where a machine was not known yet. */
  series(lines) {
    const named = new Set(lines.map(({ id }) => id));
    return lines.map(({ id }) =>
      this.samples.map(({ open }) => {
        if (id !== null) return open.get(id) ?? 0;
        let sum = 0;
        for (const [other, n] of open) if (!named.has(other)) sum += n;
        return sum;
      }),
    );
  }
}
