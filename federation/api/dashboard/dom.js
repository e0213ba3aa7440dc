// Elements from plain data. Text only ever becomes text nodes, and only what is visible of it: names come from other machines.

import { visible } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** el("p", {class: "muted", onclick: f}, "text", child, null) */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, visible(value));
  }
  element.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : visible(child))));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function setIcon(svg, name) {
  setAttribute(svg.firstChild, "href", `#i-${name}`);
}

/** Changes only what differs: a screen reader and the browser's layout are left alone once a second. */
export function setText(element, text) {
  const shown = visible(text);
  if (element.textContent !== shown) element.textContent = shown;
}

export function setAttribute(element, name, value) {
  if (value == null) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== visible(value)) {
    element.setAttribute(name, visible(value));
  }
}

/** Keep `parent`'s children in this order, touching only those that are out of place. */
export function arrange(parent, children) {
  children.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** A button that copies; says so in itself and to screen readers. */
export function copyButton(what, textOf) {
  const label = el("span", {}, "Copy");
  const button = el("button", { type: "button", "aria-label": `Copy ${what}` }, icon("copy"), label);
  let back = 0;
  button.addEventListener("click", async () => {
    const done = await copy(textOf(), button);
    label.textContent = done ? "Copied" : "Press Ctrl+C";
    announce(done ? `Copied ${what}.` : `Could not copy ${what}; select it and press Ctrl+C.`);
    clearTimeout(back);
    back = setTimeout(() => (label.textContent = "Copy"), 2500);
  });
  return button;
}

export function copyable(text, what = text) {
  return el(
    "span",
    { class: "copyable" },
    el("code", {}, text),
    copyButton(what, () => text),
  );
}

async function copy(text, near) {
  try {
    await navigator.clipboard.writeText(text); // only on loopback and https
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    area.value = text;
    near.after(area); // inside an open dialog, or it cannot take the selection
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    near.focus();
    return done;
  }
}

/** `options`: [text, value] each */
export function select(id, options) {
  return el("select", { id }, ...options.map(([text, value]) => el("option", { value: String(value) }, text)));
}

export function field(label, input) {
  return el("div", { class: "field" }, el("label", { for: input.id }, label), input);
}

export function announce(text) {
  setText($("announce"), text);
}
