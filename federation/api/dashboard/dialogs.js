// Two dialogs: "Add a machine", and a question before something is done.

import { generate } from "./vendor/lean-qr.js";
import { $, announce, copyable, copyButton, el, field, select, setText } from "./dom.js";
import { nameOf, thing, things } from "./format.js";
import { installLine } from "./handover.js";
import { codeMaker } from "./newcomers.js";
import { get, hasSession, post } from "./stream.js";

const SVG = "http://www.w3.org/2000/svg";
const QUIET_ZONE = 4; // modules of white around a QR code, as ISO 18004 has it
const SERVERS = [
  ["the server that it finds there", ""],
  ["Ollama (127.0.0.1:11434)", "--backend 127.0.0.1:11434"],
  ["llama.cpp or LocalAI (127.0.0.1:8080)", "--backend 127.0.0.1:8080"],
  ["vLLM (127.0.0.1:8000)", "--backend 127.0.0.1:8000"],
  ["LM Studio (127.0.0.1:1234)", "--backend 127.0.0.1:1234"],
  ["nothing, it only uses the others", "--no-detect"],
];

for (const dialog of document.querySelectorAll("dialog")) {
  // A click beside it closes it; its padding is its own.
  dialog.addEventListener("click", (event) => {
    const box = dialog.getBoundingClientRect();
    const inside =
      event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
    if (event.target === dialog && !inside && event.detail > 0) dialog.close();
  });
}

export function closeButton(dialog, text = "Close") {
  return el("button", { type: "button", onclick: () => dialog.close() }, text);
}

/** Instead of what only the owner may do, when this page has no session. */
export function needsSession(what) {
  return [
    el(
      "p",
      {},
      `${what} is for this machine's owner, and this page does not know you for that, or no longer. ` +
        "Run this there, and open the address that it prints:",
    ),
    el("p", { class: "do" }, copyable("federation dashboard")),
  ];
}

/** `own`: this machine's row; `others`: how many more offer each of its services. */
export function confirmDrain(own, others) {
  const back = own.draining;
  const title = back ? `Take connections again on ${nameOf(own)}?` : `Drain ${nameOf(own)}?`;
  const one = own.in_flight === 1;
  const open = own.in_flight
    ? `The ${things(own.in_flight)} open here ${one ? "goes" : "go"} on to ${one ? "its" : "their"} end`
    : "Nothing is open here now";
  const alone = Object.keys(own.services).filter((service) => !others.get(service));
  const text = back
    ? `Everybody is told at once, and new ${thing()}s come here again.`
    : `New ${thing()}s go to other machines from now on. ${open}; nothing is cut. ` +
      "The card says when it is safe to reboot. You can take it back at any time.";
  ask({
    title,
    text,
    warning:
      !back && alone.length
        ? `No other machine offers ${alone.join(", ")} now: clients that ask for it will wait, and then get an error.`
        : null,
    verb: back ? `Take ${thing()}s again` : "Drain",
    what: back ? "This" : "Draining",
    run: async () => {
      await post(back ? "/api/v1/undrain" : "/api/v1/drain");
      announce(back ? `${nameOf(own)} takes ${thing()}s again.` : `${nameOf(own)} is draining.`);
    },
  });
}

/** For another machine, by order of the network's owner. */
export function confirmOrder(peer, others) {
  const back = peer.draining;
  const alone = Object.keys(peer.services).filter((service) => !others.get(service));
  ask({
    title: back ? `Take connections again on ${nameOf(peer)}?` : `Drain ${nameOf(peer)}?`,
    text: back
      ? `This node signs the order as the network's owner, and new ${thing()}s go there again.`
      : `This node signs the order as the network's owner. New ${thing()}s go to other machines; nothing that is open there is cut.`,
    warning:
      !back && alone.length ? `No other machine offers ${alone.join(", ")} now: clients that ask for it will wait, and then get an error.` : null,
    verb: back ? `Take ${thing()}s again` : "Drain",
    what: "An order",
    run: async () => {
      const done = await post("/api/v1/orders", { peer: peer.peer_id, order: back ? "undrain" : "drain" });
      announce(done.draining ? `${nameOf(peer)} is draining.` : `${nameOf(peer)} takes ${thing()}s again.`);
    },
  });
}

export function ask({ title, text, warning, verb, what, run }) {
  const dialog = $("confirm");
  const heading = el("h2", { id: "confirm-title" }, title);
  if (!hasSession()) {
    dialog.replaceChildren(
      heading,
      el("div", { id: "confirm-text" }, ...needsSession(what)),
      el("div", { class: "buttons" }, closeButton(dialog)),
    );
    dialog.showModal();
    return;
  }
  const problem = el("p", { class: "problem", role: "alert" });
  const go = el("button", { type: "button", class: "primary" }, verb);
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      await run();
      dialog.close();
    } catch (error) {
      setText(problem, `That did not work: ${error.message}.`);
      go.disabled = false;
    }
  });
  dialog.replaceChildren(
    heading,
    el("p", { id: "confirm-text" }, text),
    ...(warning ? [el("p", { class: "problem" }, warning)] : []),
    problem,
    el("div", { class: "buttons" }, closeButton(dialog, "Cancel"), go),
  );
  dialog.showModal();
}

/** "Add a machine". */
export async function showInvite() {
  const dialog = $("invite");
  const heading = el("h2", { id: "invite-title" }, "Add a machine");
  const buttons = el("div", { class: "buttons" }, closeButton(dialog));
  dialog.replaceChildren(heading, el("p", { class: "muted" }, "One moment …"), buttons);
  dialog.showModal();
  if (!hasSession()) {
    dialog.replaceChildren(heading, ...needsSession("The invitation holds the network's secret. To show it"), buttons);
    return;
  }
  try {
    dialog.replaceChildren(heading, ...invitation(await get("/api/v1/invite")), buttons);
  } catch (error) {
    dialog.replaceChildren(
      heading,
      el("p", { class: "problem", role: "alert" }, `That did not work: ${error.message}.`),
      buttons,
    );
  }
}

/** Two things to copy: a token that is part of a command stays in the shell's history. */
function invitation({ command, token }) {
  const code = el("code", { class: "command", id: "invite-command", tabindex: "0", "aria-label": "The command" });
  const secret = el("code", { class: "command", id: "invite-token", tabindex: "0", "aria-label": "The token" }, token);
  const qr = document.createElementNS(SVG, "svg");
  drawQr(qr, token);
  const server = select("invite-server", SERVERS);
  const show = () => {
    code.textContent = server.value ? `${command} ${server.value}` : command;
  };
  server.addEventListener("change", show);
  show();
  return [
    el("p", {}, "Install federation on the new machine, then there:"),
    el("h3", {}, "1. Run this"),
    field("It offers", server),
    code,
    copyButton("the command", () => code.textContent),
    el("h3", {}, "2. Paste the token when it asks"),
    el(
      "div",
      { class: "invite-grid" },
      el(
        "div",
        {},
        secret,
        copyButton("the token", () => token),
      ),
      el("figure", {}, qr, el("figcaption", {}, "The same token, to scan.")),
    ),
    el(
      "p",
      { class: "muted" },
      "The token is this network's secret: whoever has it is a member. Paste it where the command asks, which shows " +
        "nothing of it, and not into a command: that would stay in the shell's history.",
    ),
    codeMaker(),
    installLine(server),
    el("p", { class: "joined", id: "joined", role: "status" }, "Waiting for it to appear …"),
  ];
}

/** A machine came that was not there before. */
export function tellJoined(peer) {
  const line = $("joined");
  if (!$("invite").open || !line) return;
  setText(line, `${nameOf(peer)} is here.`);
  line.dataset.tone = "good";
}

function drawQr(svg, text) {
  const code = generate(text);
  const size = code.size + 2 * QUIET_ZONE;
  let path = "";
  for (let y = 0; y < code.size; y++) {
    for (let x = 0; x < code.size; x++) if (code.get(x, y)) path += `M${x + QUIET_ZONE} ${y + QUIET_ZONE}h1v1h-1z`;
  }
  svg.setAttribute("class", "qr");
  svg.setAttribute("viewBox", `0 0 ${size} ${size}`);
  svg.setAttribute("shape-rendering", "crispEdges");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "QR code of the token");
  const dots = document.createElementNS(SVG, "path");
  dots.setAttribute("d", path);
  dots.setAttribute("fill", "#000");
  svg.replaceChildren(dots);
}
