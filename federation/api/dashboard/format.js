// What the page says: numbers and reasons in words. No DOM; pure functions, but for what machines are said to take.

const GIB = 2 ** 30;

export const STATES = {
  online: { tone: "good", icon: "good", label: "Online", says: "Takes whatever comes." },
  draining: { tone: "warn", icon: "wait", label: "Draining", says: "Finishes its open connections and takes no new ones." },
  suspect: {
    tone: "warn",
    icon: "warn",
    label: "Not answering",
    says: "Connected, but it has stopped answering; it gets nothing until it does.",
  },
  "backend down": {
    tone: "bad",
    icon: "warn",
    label: "Backend down",
    says: "The machine is there, its inference server does not answer.",
  },
  "no backend": {
    tone: "idle",
    icon: "idle",
    label: "Entry only",
    says: "Passes clients on to other machines; it offers no inference server itself.",
  },
  unreachable: {
    tone: "bad",
    icon: "warn",
    label: "Unreachable",
    says: "Other machines hear of it, but this one has no connection to it.",
  },
  offline: { tone: "bad", icon: "bad", label: "Offline", says: "Nothing was heard of it for a while." },
  left: { tone: "idle", icon: "away", label: "Left", says: "It said good-bye." },
  banned: { tone: "idle", icon: "bad", label: "Banned", says: "It was told to stay away." },
};
const PATHS = { direct: "direct", punched: "direct, through a hole in the NAT", relayed: "relayed by another machine" };
// What a machine takes: requests where there are models, else connections.
const taken = { one: "connection" };
export const setHttp = (isHttp) => (taken.one = isHttp ? "request" : "connection");
export const thing = () => taken.one;
export const things = (n) => count(n, taken.one);
const STRANGE = { tone: "idle", icon: "idle", says: "" };
const GONE = new Set(["offline", "left", "banned"]);
const TROUBLE = new Set(["suspect", "backend down", "unreachable", "offline", "draining"]);

export const stateOf = (peer) => STATES[peer.state] ?? { ...STRANGE, label: String(peer.state ?? "unknown") };
export const isGone = (peer) => GONE.has(peer.state);
export const isUp = (peer) => peer.online && peer.state !== "suspect";
export const needsAttention = (peer) => TROUBLE.has(peer.state);
export const nameOf = (peer) => peer.name || shortId(peer.peer_id);
export const shortId = (id) => "…" + String(id ?? "").slice(-6);

/**
 * Names come from other machines: a ? for each character that shows nothing, or moves or turns what others show (controls,
 * bidi overrides, zero widths, separators but the space). units.py has the same rule for the terminal.
 */
export const visible = (text) => String(text).replace(/[\p{C}\p{Z}]/gu, (c) => (c === " " ? c : "?"));

export function count(n, one, many = one + "s") {
  return `${number(n)} ${n === 1 ? one : many}`;
}

export function number(n) {
  return Number(n ?? 0).toLocaleString("en", { maximumFractionDigits: n < 10 ? 1 : 0 });
}

export function percent(share) {
  if (share > 0 && share < 0.01) return "< 1 %";
  return `${Math.round(share * 100)} %`;
}

export function gib(bytes) {
  const n = (bytes ?? 0) / GIB;
  return n >= 100 || Number.isInteger(n) ? String(Math.round(n)) : n.toFixed(1);
}

export function vram(free, total) {
  return total > 0 ? `${gib(free)} of ${gib(total)} GiB free` : "none";
}

/** A model's size; 0 is unknown. */
export function gibOf(bytes) {
  return bytes > 0 ? `${gib(bytes)} GiB` : "–";
}

export function firstToken(s) {
  if (s == null) return "–";
  return s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`;
}

export function rate(perSecond) {
  return perSecond == null ? "–" : number(perSecond);
}

export function scaled(n) {
  for (const [unit, size] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ]) {
    if (n >= size) return [(n / size).toFixed(n >= 100 * size ? 0 : 1), unit];
  }
  return [String(Math.round(n)), "B"];
}

export const bytes = (n) => scaled(n).join(" ");

export function duration(s) {
  s = Math.max(0, s);
  if (s < 1) return "under a second";
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 48 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}

export function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

export function day(time) {
  return new Date(time).toLocaleDateString([], { dateStyle: "medium" });
}

export function ago(time, now = Date.now()) {
  return `${duration((now - Date.parse(time)) / 1000)} ago`;
}

export function roundTrip(ms) {
  return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`;
}

export function pathOf(peer) {
  if (peer.self) return "this machine";
  if (peer.path === "none") return "no connection";
  const path = PATHS[peer.path] ?? String(peer.path);
  return peer.rtt_ms == null ? path : `${path}, ${roundTrip(peer.rtt_ms)}`;
}

export function servicesOf(peer) {
  return Object.entries(peer.services ?? {})
    .map(([name, up]) => (up ? name : `${name} (down)`))
    .join(", ");
}

/** Why a decision went where it went, in one sentence. `candidates`: as GET /explain has them. */
export function reason(decision) {
  const chosen = decision.candidates.find((c) => c.peer_id === decision.chosen);
  const others = decision.candidates.filter((c) => c.peer_id !== decision.chosen);
  if (!chosen || others.length === 0 || decision.tier === "only") {
    return decision.attempt > 1 ? "the only one left to try" : "the only machine that could take it";
  }
  const best = (key) => others.reduce((a, b) => (key(b) < key(a) ? b : a));
  const who = (c) => c.name || shortId(c.peer_id);
  const open = (n) => (n === 0 ? "nothing open" : `${number(n)} open`);
  const level = others.filter((c) => c.in_flight === chosen.in_flight);
  const tied = `${open(chosen.in_flight)}, like ${level.length === 1 ? who(level[0]) : count(level.length, "other")}`;
  switch (decision.tier) {
    case "warm":
      return "it has the model in memory";
    case "cold":
      return "the place to load the model";
    case "home":
      return "the home of this conversation: the beginning of its prompt is there";
    case "capacity":
      return "the others are at their capacity";
    case "in_flight": {
      const next = best((c) => c.in_flight);
      return `least busy: ${open(chosen.in_flight)}, next is ${who(next)} with ${number(next.in_flight)}`;
    }
    case "path":
      return `${tied}, and the others are much further away`;
    case "last_used": {
      if (chosen.last_used_age_s == null) return `${tied}, and not used yet`;
      return `${tied}, and longest unused: ${duration(chosen.last_used_age_s)}`;
    }
    case "available_vram": {
      const next = best((c) => -c.available_vram);
      const [most, less] = [chosen, next].map((c) => gib(c.available_vram));
      return `${tied}, and most free VRAM: ${most} GiB, next is ${who(next)} with ${less}`;
    }
    case "served":
      return `has served fewest: ${number(chosen.served)}`;
    case "random":
      return "by chance, as the policy says";
    case "tiebreak":
      return "all equal, so by this machine's own fixed order";
    default:
      return `ahead in ${String(decision.tier)}`;
  }
}

/** Of a request to a model: when its first token came, how many did, how fast, and how much of the prompt was cached. */
function answered({ answer, seconds }) {
  if (!answer) return [];
  const { first_s, tokens } = answer;
  const said = [];
  if (first_s != null) said.push(`first token after ${firstToken(first_s)}`);
  if (tokens?.made != null) {
    const rest = seconds - (first_s ?? 0);
    said.push(count(tokens.made, "token") + (rest > 0 && tokens.made > 1 ? `, ${number(tokens.made / rest)} a second` : ""));
  }
  if (tokens?.cached != null && tokens.taken) said.push(`${percent(tokens.cached / tokens.taken)} of the prompt cached`);
  return said;
}

/** What became of it. `decision`: as GET /explain has it. */
export function outcomeOf({ id, request, service, model, client, failed, ended }) {
  const which = request > 1 || model ? `Request ${request} of connection ${id}` : `Connection ${id}`;
  const what = [which, model || service, `from ${client}`, ...(ended?.key ? [`with the key ${ended.key}`] : [])].join(", ");
  if (failed) return `${what}: this try failed: ${failed}.`;
  if (!ended) return `${what}: still open.`;
  const sizes = [`${bytes(ended.received)} in, ${bytes(ended.delivered)} out`, ...answered(ended)].join(", ");
  return ended.error
    ? `${what}: ended after ${duration(ended.seconds)}: ${ended.error}; ${sizes}.`
    : `${what}: done after ${duration(ended.seconds)}; ${sizes}.`;
}
