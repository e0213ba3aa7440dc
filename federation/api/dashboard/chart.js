// The time line: what is open per machine, stacked, drawn by uPlot.

import { $, arrange, el, setAttribute, setText } from "./dom.js";
import { duration, number } from "./format.js";

const MARKS = [0.8, 0.4]; // of the time shown: the axis stands still, the line moves
const HEIGHT = 260; // as in style.css
const dark = matchMedia("(prefers-color-scheme: dark)");

export class Chart {
  constructor() {
    this.plot = null;
    this.shape = "";
    this.legend = new Map();
    dark.addEventListener("change", () => this.rebuild());
    new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width > 0) this.plot?.setSize({ width: contentRect.width, height: HEIGHT });
    }).observe($("timeline"));
  }

  /** `nameOf(id)`: what to call a line. */
  update(history, nameOf) {
    this.history = history;
    this.nameOf = nameOf;
    const lines = history.lines();
    const shape = JSON.stringify([history.span, ...lines.map(({ slot }) => slot)]);
    if (shape !== this.shape || !this.plot) {
      this.shape = shape;
      this.rebuild();
    } else {
      this.plot.setData(this.data(lines));
    }
    this.describe(lines);
  }

  data(lines) {
    const counts = this.history.series(lines);
    const sums = this.history.samples.map(() => 0);
    // Drawn from the highest sum down, each filled to the ground: the next covers what is not its predecessor's.
    const stacked = counts.map((line) => line.map((n, i) => (sums[i] += n))).reverse();
    return [this.history.samples.map(({ at }) => at), ...stacked];
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    const box = $("timeline");
    if (!this.history || box.clientWidth === 0) return;
    const lines = this.history.lines();
    const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const axis = {
      stroke: color("--muted"),
      grid: { stroke: color("--line"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const surface = color("--surface");
    this.plot = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        padding: [8, 8, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: true, range: (_plot, _min, max) => [max - this.history.windowS(), max] },
          y: { range: (_plot, _min, max) => [0, Math.max(4, Math.ceil((max ?? 0) * 1.15))] },
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            size: 28,
            splits: (plot) => MARKS.map((mark) => plot.scales.x.max - mark * this.history.windowS()),
            values: () => MARKS.map((mark) => `${duration(mark * this.history.windowS())} ago`),
          },
          {
            ...axis,
            size: 42,
            incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
            values: (_plot, ns) => ns.map(number),
          },
        ],
        series: [
          {},
          ...lines
            .map(({ slot }) => ({
              stroke: surface,
              width: 1,
              fill: color(`--c${slot}`),
              points: { show: false },
              paths: uPlot.paths.stepped({ align: 1 }),
            }))
            .reverse(),
        ],
      },
      this.data(lines),
      box,
    );
  }

  /** The same in words and numbers: the legend, and the picture's description. */
  describe(lines) {
    const newest = this.history.series(lines).map((line) => line.at(-1));
    const parts = lines.map(({ id }, i) => [id === null ? "others" : this.nameOf(id), newest[i]]);
    arrange(
      $("legend"),
      lines.map(({ id, slot }, i) => {
        let entry = this.legend.get(id);
        if (!entry) {
          const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
          const name = el("span");
          const value = el("b");
          this.legend.set(id, (entry = { element: el("li", {}, swatch, name, value), swatch, name, value }));
        }
        setAttribute(entry.swatch, "data-c", slot);
        setText(entry.name, parts[i][0]);
        setText(entry.value, number(parts[i][1]));
        return entry.element;
      }),
    );
    for (const id of this.legend.keys()) if (!lines.some((line) => line.id === id)) this.legend.delete(id);
    setAttribute(
      $("timeline"),
      "aria-label",
      `Connections per machine over ${this.history.span}; now: ${parts.map(([name, n]) => `${name} ${number(n)}`).join(", ")}`,
    );
  }
}
