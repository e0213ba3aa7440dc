// The daemon, over HTTP: the session, requests, and the stream of events, which comes back by itself.
// fetch() instead of EventSource: that cannot send the session.

const SILENCE_MS = 10_000; // a state comes every second
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 5_000;
const SESSION = "federation.session";
const OLD_ADDRESS = "This address is of an older version. Run `federation dashboard`, and open the address that it prints.";

/**
 * A code comes behind the # of the address that `federation dashboard` prints, and is exchanged for a session of this tab.
 * What is wrong with it, as a sentence; "" where all is well; null where the address has none.
 */
export async function takeCode() {
  const given = new URLSearchParams(location.hash.slice(1));
  const code = given.get("code");
  const isOld = given.has("key");
  if (code === null && !isOld) return null;
  history.replaceState(null, "", location.pathname);
  if (code === null) return OLD_ADDRESS;
  sessionStorage.removeItem(SESSION);
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await request("/api/v1/dashboard/session", { method: "POST", headers, body: JSON.stringify({ code }) });
    sessionStorage.setItem(SESSION, (await response.json()).session);
    return "";
  } catch (error) {
    return `This page may only show, and do nothing: ${error.message}.`;
  }
}

export const hasSession = () => sessionStorage.getItem(SESSION) !== null;

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const session = sessionStorage.getItem(SESSION);
  const headers = { ...options.headers, ...(session ? { Authorization: `Bearer ${session}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  if (response.ok) return response;
  if (response.status === 401 && session && sessionStorage.getItem(SESSION) === session) sessionStorage.removeItem(SESSION);
  const answer = await response.json().catch(() => ({}));
  throw new Refused(response.status, answer.error ?? `the node answered ${response.status}`);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body) {
  const how = body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await request(path, { method: "POST", ...how })).json();
}

/**
 * Calls onEvent(name, data) for each event, for ever. `onUp()` after the first event of a connection; `onDown(error)`
 * when it is lost; it is tried again until it works. What was missed is asked for by the last event's id, which at first
 * is `lastId`.
 */
export async function follow(path, lastId, { onEvent, onUp, onDown }) {
  const at = { lastId };
  for (let failures = 0; ; failures++) {
    let isUp = false;
    let error = new Error("the stream ended");
    try {
      await readOnce(path, at, (name, data) => {
        if (!isUp) onUp();
        isUp = true;
        failures = 0;
        onEvent(name, data);
      });
    } catch (problem) {
      error = problem;
    }
    onDown(error);
    await pause(Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** failures));
  }
}

async function readOnce(path, at, onEvent) {
  const abort = new AbortController();
  let watch = setTimeout(() => abort.abort(), SILENCE_MS);
  try {
    const response = await request(path, { headers: { "Last-Event-ID": at.lastId }, signal: abort.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_MS);
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) dispatch(block, at, onEvent);
    }
  } finally {
    clearTimeout(watch);
    abort.abort(); // closes the connection, whatever ended the reading
  }
}

function dispatch(block, at, onEvent) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (field === "event") name = value;
    else if (field === "data") data.push(value);
    else if (field === "id") at.lastId = value;
  }
  if (data.length) onEvent(name, JSON.parse(data.join("\n")));
}

/** Also over when the machine wakes up, finds its network again, or the person comes back to the page. */
function pause(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      removeEventListener("online", done);
      document.removeEventListener("visibilitychange", seen);
      resolve();
    };
    const seen = () => document.visibilityState === "visible" && done();
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    document.addEventListener("visibilitychange", seen);
  });
}
