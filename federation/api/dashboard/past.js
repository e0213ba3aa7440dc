// The last 24 hours, as the node kept them: in the shape that the time line draws (history.js). No DOM.

import { LINES } from "./history.js";

const WINDOWS_S = [3600, 6 * 3600, 24 * 3600];

export class Past {
  /** `answer`: of GET /api/v1/history; `colors`: peer id -> slot, of the last minutes: a machine keeps its colour. */
  constructor(answer, colors) {
    this.answer = answer;
    this.samples = answer.open.map((_, i) => ({ at: answer.at + i * answer.step_s }));
    const ids = answer.machines.map(({ peer_id }) => peer_id);
    this.colors = new Map(ids.filter((id) => colors.has(id)).map((id) => [id, colors.get(id)]));
    const free = [...Array(LINES).keys()].filter((slot) => ![...this.colors.values()].includes(slot));
    for (const id of ids) if (!this.colors.has(id) && free.length) this.colors.set(id, free.shift());
  }

  get span() {
    return "the last 24 hours";
  }

  windowS() {
    const covered = this.samples.length * this.answer.step_s;
    return WINDOWS_S.find((s) => s >= covered) ?? WINDOWS_S.at(-1);
  }

  lines() {
    const own = [...this.colors].map(([id, slot]) => ({ id, slot })).sort((a, b) => a.slot - b.slot);
    return this.answer.others ? [...own, { id: null, slot: LINES }] : own;
  }

  series(lines) {
    const loads = new Map(this.answer.machines.map(({ peer_id, load }) => [peer_id, load]));
    return lines.map(({ id }) => (id === null ? this.answer.others : loads.get(id)).map((n) => n ?? 0));
  }
}

/** Of one machine: its mean and highest load, how much of the time it was well, and since when it is known; or null. */
export function summary({ load, well }, stepS) {
  const known = load.filter((n) => n !== null);
  if (!known.length) return null;
  const parts = well.filter((n) => n !== null);
  const unwell = parts.reduce((sum, part) => sum + (1 - part), 0);
  return {
    mean: known.reduce((a, b) => a + b, 0) / known.length,
    most: Math.max(...known),
    well: 1 - unwell / parts.length,
    unwellS: unwell * stepS,
    coversS: known.length * stepS,
  };
}
