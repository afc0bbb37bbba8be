// The trace of an answer's entropy, token by token, with the thresholds and who wrote.
import { number } from "./dom.js";

const POINTS = 900; // in the chart; of longer answers several tokens share one, at their highest
const EVERY_MS = 120; // it is drawn anew while tokens come

export class Trace {
  #plot = null;
  #models = [];
  #drawn = 0; // tokens
  #at = 0; // when; performance.now()
  #share = 1; // tokens of one point

  /** `figure` holds a caption and a place for the chart; `picked` is told of a token. */
  constructor(figure, { raise = null, lower = null, window = 5 }, picked) {
    this.figure = figure;
    this.place = figure.querySelector(".plot");
    this.caption = figure.querySelector("figcaption");
    Object.assign(this, { raise, lower, window, picked });
    this.bits = []; // by token
    this.mean = []; // over `window` tokens of one writer; null where there are not so many
    this.colours = [];
    this.hands = []; // tokens before which the pen changed hands
    this.surprisal = false;
    this.place.replaceChildren();
    this.place.ariaLabel = "Entropy of the tokens so far";
    figure.hidden = true;
  }

  push(token) {
    const at = this.bits.length;
    if (at && this.colours[at - 1] !== token.colour) this.hands.push(at);
    this.bits.push(token.bits);
    this.colours.push(token.colour);
    this.surprisal ||= token.surprisal;
    this.mean.push(this.#meanAt(at));
  }

  /** Draws it, if there is anything new and it is time; whether it must be drawn later. */
  draw(now, ended = false) {
    if (ended) this.#tell();
    if (this.#drawn === this.bits.length) return false;
    if (!ended && now - this.#at < EVERY_MS) return true;
    if (this.bits.every((bits) => bits === null)) {
      this.#drawn = this.bits.length;
      return false;
    }
    this.#at = now;
    this.#drawn = this.bits.length;
    this.figure.hidden = false;
    const models = [...new Set(this.colours)].sort();
    if (this.#plot === null || String(models) !== String(this.#models)) this.#make(models);
    this.#plot.setData(this.#data());
    return false;
  }

  /** Draws all of it anew, in other colours or another width. */
  again() {
    if (this.#plot === null) return;
    this.#make(this.#models);
    this.#plot.setData(this.#data());
  }

  destroy() {
    this.#plot?.destroy();
    this.#plot = null;
  }

  #meanAt(at) {
    const from = at + 1 - this.window;
    const since = this.hands.at(-1) ?? 0;
    if (from < since) return null;
    let sum = 0;
    for (let i = from; i <= at; i += 1) {
      if (this.bits[i] === null) return null;
      sum += this.bits[i];
    }
    return sum / this.window;
  }

  #data() {
    const tokens = this.bits.length;
    this.#share = Math.max(1, Math.ceil(tokens / POINTS));
    const points = Math.ceil(tokens / this.#share);
    const x = new Array(points);
    const mean = new Array(points).fill(null);
    const by = new Map(this.#models.map((colour) => [colour, new Array(points).fill(null)]));
    for (let point = 0; point < points; point += 1) {
      x[point] = point * this.#share + 1;
      const end = Math.min((point + 1) * this.#share, tokens);
      for (let at = point * this.#share; at < end; at += 1) {
        const series = by.get(this.colours[at]);
        if (this.bits[at] !== null) series[point] = Math.max(series[point] ?? 0, this.bits[at]);
        mean[point] = this.mean[at] ?? mean[point];
      }
    }
    return [x, ...this.#models.map((colour) => by.get(colour)), mean];
  }

  #make(models) {
    this.#plot?.destroy();
    this.#models = models;
    const style = getComputedStyle(this.figure);
    const of = (name) => style.getPropertyValue(name).trim();
    const [ink, quiet] = [of("--ink"), of("--quiet")];
    const axis = { stroke: quiet, font: "11px system-ui, sans-serif", ticks: { show: false } };
    const width = Math.max(this.place.clientWidth, 200);
    const scatter = (colour) => ({
      stroke: of(`--m${colour}`),
      paths: () => null,
      points: { show: true, size: 4, fill: of(`--m${colour}`), width: 0 },
    });
    this.#plot = new uPlot(
      {
        width,
        height: 150,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        scales: { x: { time: false }, y: { range: (_, __, most) => [0, this.#top(most)] } },
        axes: [
          { ...axis, grid: { show: false }, size: 22, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
          { ...axis, grid: { stroke: of("--line"), width: 1 }, size: 30, space: 28 },
        ],
        series: [{}, ...models.map(scatter), { stroke: ink, width: 1.5, points: { show: false }, spanGaps: false }],
        hooks: {
          draw: [(plot) => this.#lines(plot, of)],
          setCursor: [(plot) => this.#pick(plot)],
        },
      },
      [[]],
      this.place,
    );
    const what = this.surprisal
      ? "Surprisal of each token, bits, as no entropy is reported"
      : "Entropy before each token, bits";
    const levels = [this.raise, this.lower].some((level) => level !== null);
    this.caption.textContent = 
      `${what}; line: mean of ${this.window}` + (levels ? "; dashed: where the pen changes hands" : "");
  }

  #top(most) {
    return Math.max(most ?? 0, this.raise ?? 0, this.lower ?? 0, 1) * 1.1;
  }

  #lines(plot, of) {
    const { ctx, bbox } = plot;
    const scale = devicePixelRatio;
    ctx.save();
    ctx.lineWidth = scale;
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    ctx.textAlign = "right";
    const line = (x1, y1, x2, y2) => {
      ctx.beginPath();
      ctx.moveTo(x1, y1);
      ctx.lineTo(x2, y2);
      ctx.stroke();
    };
    ctx.strokeStyle = of("--line-strong");
    for (const at of this.hands.slice(-400)) {
      const x = plot.valToPos(at + 0.5, "x", true);
      line(x, bbox.top, x, bbox.top + bbox.height);
    }
    ctx.setLineDash([5 * scale, 4 * scale]);
    ctx.strokeStyle = of("--ink");
    ctx.fillStyle = of("--ink");
    for (const [name, level] of [["raise_at", this.raise], ["lower_at", this.lower]]) {
      if (level === null || !Number.isFinite(level)) continue;
      const y = plot.valToPos(level, "y", true);
      line(bbox.left, y, bbox.left + bbox.width, y);
      const text = `${name} ${number(level)}`;
      const [right, above] = [bbox.left + bbox.width - 4 * scale, y - 4 * scale];
      ctx.save();
      ctx.setLineDash([]);
      ctx.lineWidth = 4 * scale;
      ctx.strokeStyle = of("--card");
      ctx.strokeText(text, right, above);
      ctx.restore();
      ctx.fillText(text, right, above);
    }
    ctx.restore();
  }

  #pick(plot) {
    const { idx, left } = plot.cursor;
    if (idx !== null && idx !== undefined && left >= 0) this.picked(idx * this.#share);
  }

  #tell() {
    const known = this.bits.filter((bits) => bits !== null);
    if (!known.length) return;
    const most = known.reduce((a, b) => Math.max(a, b), 0);
    const mean = known.reduce((a, b) => a + b, 0) / known.length;
    const what = this.surprisal ? "Surprisal" : "Entropy";
    this.place.ariaLabel =
      `${what} of ${known.length} tokens: ${number(mean)} bits in the mean, ${number(most)} at most;` +
      ` the pen changed hands ${this.hands.length} times`;
  }
}
