// "Add a machine", for one without federation: a line that installs this version from here, and joins.

import { copyButton, el, setText } from "./dom.js";
import { post } from "./stream.js";

/** `server`: the choice of what the machine offers. */
export function installLine(server) {
  const problem = el("p", { class: "problem", role: "alert" });
  const made = el("div", {});
  const button = el("button", { type: "button", id: "invite-install" }, "Make the line");
  button.addEventListener("click", async () => {
    button.disabled = true;
    setText(problem, "");
    setText(button, "Packing this version …");
    try {
      const { line, lifetime_s: lifetime, base } = await post("/api/v1/handover", wish());
      show(line, `Good once, for ${Math.round(lifetime / 60)} minutes, on a machine that reaches ${base}.`);
    } catch (error) {
      setText(problem, `That did not work: ${error.message}.`);
    }
    setText(button, "Make another line");
    button.disabled = false;
  });

  function show(line, note) {
    const code = el("code", { class: "command", id: "install-line", tabindex: "0", "aria-label": "The line" });
    const update = () => setText(code, server.value ? `${line} ${server.value}` : line);
    server.addEventListener("change", update);
    update();
    made.replaceChildren(
      code,
      copyButton("the line", () => code.textContent),
      el("p", { class: "muted" }, note),
    );
  }

  return el(
    "details",
    {},
    el("summary", {}, "Or one line, where federation is not installed yet"),
    el(
      "p",
      { class: "muted" },
      "It gets this version from here, checks it, and makes the node a service there. Run it in sh, bash or zsh on Linux, " +
        "as root for the machine or as a user. Nothing in it is of use to anybody once it has run.",
    ),
    button,
    problem,
    made,
  );
}

/** The address by which this page was reached, if others may reach it so, too. */
function wish() {
  const host = location.hostname;
  const isHere = host === "localhost" || host.startsWith("127.") || host === "[::1]";
  return isHere ? {} : { address: location.port ? location.host : `${location.host}:${location.protocol === "https:" ? 443 : 80}` };
}
