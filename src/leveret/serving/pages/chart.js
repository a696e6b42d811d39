// A line chart in SVG: axes, a legend, and a read-out under the pointer or by the arrow keys.

import { h, s, short } from "./dom.js";

const LEFT = 52;
const RIGHT = 10;
const TOP = 8;
const FOOT = 24;

/**
 * A chart that can be given new data. what: {title, series: [{name, kind, points: [[step, value]], dots}], marks}.
 * Each step is read out over the nearest point of every series.
 */
export class Chart {
  constructor(height = 150) {
    this.height = height;
    this.step = null; // the one that is read out
    this.says = h("span", { class: "says" });
    this.title = h("b");
    this.legend = h("span", { class: "legend" });
    this.picture = s("svg", { tabindex: 0, role: "img", height });
    this.element = h("figure", {}, h("figcaption", {}, this.title, this.legend, this.says), this.picture);
    this.picture.addEventListener("pointermove", (event) => this.readAt(event.offsetX));
    this.picture.addEventListener("pointerleave", () => this.read(null));
    this.picture.addEventListener("blur", () => this.read(null));
    this.picture.addEventListener("keydown", (event) => this.walk(event));
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  update(what) {
    this.what = what;
    this.steps = [...new Set(what.series.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
    this.title.textContent = what.title;
    this.legend.replaceChildren(...(what.series.length > 1 ? what.series.map(({ name, kind }) => h("span", { class: kind }, name)) : []));
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth - 2;
    if (!this.what || width < 80) return;
    const { series, marks = [] } = this.what;
    const [low, high, ticks] = scale(series.flatMap(({ points }) => points.map(([, value]) => value)));
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    this.x = (step) => LEFT + ((step - first) / (last - first || 1)) * (width - LEFT - RIGHT);
    const bottom = this.height - FOOT;
    this.y = (value) => bottom - ((Math.max(low, Math.min(high, value)) - low) / (high - low)) * (bottom - TOP);
    const right = width - RIGHT;
    this.cursor = s("g", { class: "cursor" });
    this.picture.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.picture.setAttribute("aria-label", this.inWords());
    this.picture.replaceChildren(
      ...ticks.flatMap((tick) => [
        s("line", { class: "grid", x1: LEFT, x2: right, y1: this.y(tick), y2: this.y(tick) }),
        s("text", { x: LEFT - 7, y: this.y(tick) + 4, "text-anchor": "end" }, short(tick)),
      ]),
      ...stepTicks(first, last, Math.max(4, Math.floor(width / 80))).map((tick) =>
        s("text", { x: this.x(tick), y: this.height - 6, "text-anchor": this.x(tick) > right - 12 ? "end" : "middle" }, short(tick))),
      ...marks.filter(({ step }) => step >= first && step <= last).map(({ step, kind }) =>
        s("path", { class: `mark ${kind}`, d: `M${this.x(step)} ${TOP + 1}l-4 -7h8z` }, s("title", {}, `${kind} at step ${step}`))),
      ...series.flatMap(({ kind, points, dots }) => [
        s("path", { class: `line ${kind}`, d: points.map(([step, value], i) => `${i ? "L" : "M"}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`).join("") }),
        ...(dots || points.length === 1 ? points.map(([step, value]) => s("circle", { class: kind, cx: this.x(step), cy: this.y(value), r: 2.5 })) : []),
      ]),
      this.cursor,
    );
    this.read(this.step);
  }

  inWords() {
    const ends = this.what.series.filter(({ points }) => points.length).map(({ name, points }) => {
      const [[first, from], [last, to]] = [points[0], points.at(-1)];
      return `${name}: ${short(from)} at step ${first}, ${short(to)} at step ${last}`;
    });
    return `${this.what.title}. ${ends.join("; ")}. Arrow keys read the values.`;
  }

  readAt(place) {
    if (!this.steps?.length) return;
    const far = (step) => Math.abs(this.x(step) - place);
    this.read(this.steps.reduce((best, step) => (far(step) < far(best) ? step : best)));
  }

  walk(event) {
    const place = this.step === null ? (event.key === "ArrowLeft" ? this.steps.length : -1) : this.steps.indexOf(this.step);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: this.steps.length - 1 }[event.key];
    if (this.steps[to] === undefined) return;
    event.preventDefault();
    this.read(this.steps[to]);
  }

  /** Shows the values at a step; null shows the newest in the caption. */
  read(step) {
    this.step = step;
    if (!this.x) return;
    const at = step ?? this.steps.at(-1);
    const found = this.what.series.map((each) => ({ ...each, point: nearest(each.points, at, step === null) })).filter(({ point }) => point);
    const values = found.map(({ kind, point }) => h("span", { class: kind }, short(point[1])));
    this.says.replaceChildren(...(values.length ? [step === null ? "" : `step ${short(step)} `, ...values] : []));
    const dots = found.map(({ kind, point: [x, value] }) => s("circle", { class: kind, cx: this.x(x), cy: this.y(value), r: 4 }));
    this.cursor.replaceChildren(...(step === null ? [] : [s("line", { x1: this.x(step), x2: this.x(step), y1: TOP, y2: this.height - FOOT }), ...dots]));
  }
}

/** The point of a curve at a step or the last before it; the curve's last where all of it is meant. */
function nearest(points, step, last) {
  return last ? points.at(-1) : points.findLast(([at]) => at <= step);
}

/** Ends and ticks of the upright axis, around nearly all values: a few far out do not flatten the rest. */
function scale(values) {
  const ordered = [...values].sort((a, b) => a - b);
  const [least, usual, most] = [ordered[0], ordered[Math.floor(0.98 * (ordered.length - 1))], ordered.at(-1)];
  const high = Math.min(most, usual + (usual - least));
  const low = least > 0 && least < 0.4 * high ? 0 : least;
  const pace = round((high - low || Math.abs(high) || 1) / 4);
  const from = Math.floor(low / pace + 1e-9) * pace;
  const to = Math.max(Math.ceil(high / pace - 1e-9) * pace, from + pace);
  const ticks = Array.from({ length: Math.round((to - from) / pace) + 1 }, (_, i) => Number((from + i * pace).toPrecision(12)));
  return [from, to, ticks];
}

/** Whole steps for the foot, at a round distance from each other. */
function stepTicks(first, last, most) {
  if (first === last) return [first];
  const pace = Math.max(1, Math.ceil(round((last - first) / most)));
  const from = Math.ceil(first / pace);
  return Array.from({ length: Math.floor(last / pace) - from + 1 }, (_, i) => (from + i) * pace);
}

/** The next round number: 1, 2, 2.5 or 5 times a power of ten. */
function round(distance) {
  const power = 10 ** Math.floor(Math.log10(distance));
  return power * [1, 2, 2.5, 5, 10].find((each) => each * power >= distance * 0.999);
}
