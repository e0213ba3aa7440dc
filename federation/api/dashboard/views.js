// Which page of the dashboard is shown: what stands behind #/ in the address, so that it can be shared. No secret is in it.
//     #/  #/machine/PEER_ID  #/connections  #/log  #/checkup  #/bans

import { $, setAttribute } from "./dom.js";

const OVERVIEW = "overview";

/** {name, argument}; whatever is no page is the overview. */
export function parse(hash) {
  if (!hash.startsWith("#/")) return { name: OVERVIEW, argument: "" };
  const [name, ...rest] = hash.slice(2).split("/");
  try {
    return { name: name || OVERVIEW, argument: decodeURIComponent(rest.join("/")) };
  } catch {
    return { name: name || OVERVIEW, argument: "" }; // a % that is none
  }
}

export const linkTo = (peerId) => `#/machine/${encodeURIComponent(peerId)}`;

export class Views {
  /** `pages`: name -> {show(argument), refresh(), title()}. The sections of a page say its name in data-view. */
  constructor(pages, onChange) {
    this.pages = { [OVERVIEW]: {}, ...pages };
    this.onChange = onChange;
    this.name = "";
    this.argument = "";
  }

  get page() {
    return this.pages[this.name] ?? {};
  }

  /** Shows what the address says. `isMove`: a person went there, and a screen reader follows. */
  go(isMove) {
    const { name, argument } = parse(location.hash);
    this.name = name in this.pages ? name : OVERVIEW;
    this.argument = argument;
    for (const section of $("main").children) {
      section.classList.toggle("elsewhere", (section.dataset.view ?? OVERVIEW) !== this.name);
    }
    for (const link of $("views").querySelectorAll("a")) {
      setAttribute(link, "aria-current", link.dataset.page === this.name ? "page" : null);
    }
    this.page.show?.(argument);
    this.onChange();
    if (!isMove) return;
    const target = this.name === OVERVIEW ? $("machines") : $(`${this.name}-title`);
    if (this.name !== OVERVIEW) scrollTo(0, 0);
    target.focus({ preventScroll: this.name !== OVERVIEW });
  }

  refresh() {
    return this.page.refresh?.();
  }

  title() {
    return this.page.title?.() ?? "";
  }
}
