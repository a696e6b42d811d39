// The run page: reads /api/run again and again while the run is at work, and draws what has changed.

import { Chart } from "./chart.js";
import { Trouble, json } from "./client.js";
import { byId, duration, h, number, short } from "./dom.js";

const PAUSE = 2000; // ms between looks at a run at work
const REST = 5000; // and at one that is not: the same command may go on with it

const stages = new Map(); // name -> what of its section is kept from look to look
let shown = ""; // the answer that is on the page

async function look() {
  let run = null;
  try {
    run = await json("/api/run", { cache: "no-cache" });
    byId("notice").hidden = true;
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    byId("notice").textContent = error.message;
    byId("notice").hidden = false;
  }
  const text = JSON.stringify(run);
  if (run && text !== shown) {
    shown = text;
    show(run);
  }
  setTimeout(look, run?.state === "running" ? PAUSE : REST);
}

function show(run) {
  document.title = `${run.name} · Leveret`;
  byId("name").textContent = run.name;
  showState(run);
  for (const stage of run.stages) {
    if (!stages.has(stage.name)) {
      stages.set(stage.name, new Stage(stage.name));
      byId("stages").prepend(stages.get(stage.name).element);
    }
    stages.get(stage.name).update(stage);
  }
  showEvaluation(run.stages);
  showData(run);
  showAbout(run);
}

function showState(run) {
  const state = run.steps.length ? run.state : "not begun";
  const facts = [run.seconds !== null && `${duration(run.seconds)} of training`, run.cost !== null && `$${number(run.cost, 2)}`].filter(Boolean);
  const before = byId("state").querySelector(".chip")?.textContent;
  byId("state").replaceChildren(
    h("div", { class: "head" }, h("h2", {}, run.name), h("span", { class: `chip ${run.state}` }, state),
      h("span", { class: "soft" }, facts.join(" · "))),
    run.description ? h("p", { class: "soft" }, run.description) : "",
    run.why ? h("p", { class: "why" }, run.why) : "",
    state === "interrupted" ? h("p", { class: "soft" }, "The command that began it goes on with it.") : "",
    h("ol", { class: "way", "aria-label": "Stages" }, run.steps.map((step) => h("li",
      { class: step.finished ? "done" : step.failed ? "failed" : "open" }, step.name,
      h("span", { class: "soft" }, step.seconds === null ? (step.failed ? "failed" : "not finished") : duration(step.seconds))))),
    run.stages.length ? "" : h("p", {}, "Nothing has been trained yet. Curves appear here as soon as there are any."),
  );
  if (before && before !== state) byId("status").textContent = `The run is ${state}.`;
}

/** The section of a stage of training. */
class Stage {
  constructor(name) {
    this.head = h("h2");
    this.progress = h("progress", { "aria-label": `Progress of ${name}` });
    this.cards = h("div", { class: "cards" });
    this.loss = new Chart(240);
    this.grid = h("div", { class: "grid" });
    this.panels = new Map();
    this.samples = new Samples();
    this.element = h("section", { class: "stage", "aria-label": name, data: { stage: name } }, this.head, this.progress, this.cards,
      this.loss.element, this.grid, this.samples.element);
  }

  update(stage) {
    const of = stage.steps ? ` of ${number(stage.steps)}` : "";
    this.head.replaceChildren(stage.name, h("small", {}, stage.step === null ? "" : `step ${number(stage.step)}${of}`));
    this.progress.hidden = !stage.steps || stage.step >= stage.steps;
    this.progress.max = stage.steps ?? 1;
    this.progress.value = stage.step ?? 0;
    this.cards.replaceChildren(...cards(stage));
    const { loss = [], validation_loss: heldOut = [] } = stage.curves;
    this.loss.element.hidden = !loss.length && !heldOut.length;
    const series = [{ name: "training", kind: "training", points: loss }, { name: "held-out", kind: "held-out", points: heldOut, dots: heldOut.length <= 40 }];
    this.loss.update({ title: stage.loss_label, series: series.filter(({ points }) => points.length), marks: stage.events });
    for (const { key, label, points } of stage.panels) {
      if (!this.panels.has(key)) {
        this.panels.set(key, new Chart());
        this.grid.append(this.panels.get(key).element);
      }
      this.panels.get(key).update({ title: label, series: [{ name: label, kind: "rate", points }] });
    }
    this.samples.update(stage.samples);
  }
}

function cards({ loss, validation_loss: heldOut, seconds, energy_kwh: energy, cost, figures }) {
  const found = [
    ["loss", loss, short], ["held-out loss", heldOut, short], ["tokens", figures.tokens, short],
    ["tokens/s", figures.tokens_per_second, (value) => number(value)], ["epochs", figures.epochs, (value) => number(value, 2)],
    ["MFU", figures.mfu, (value) => `${number(100 * value, 1)}%`], ["time", seconds, duration],
    ["peak memory", figures.peak_memory_bytes, (value) => `${number(value / 2 ** 30, 2)} GiB`],
    ["energy", energy, (value) => `${short(value)} kWh`], ["cost", cost, (value) => `$${number(value, 2)}`],
  ];
  return found.filter(([, value]) => typeof value === "number")
    .map(([name, value, say]) => h("div", {}, h("b", {}, say(value)), h("span", {}, name)));
}

/** Samples by step: the newest, until another is chosen. */
class Samples {
  constructor() {
    this.slider = h("input", { type: "range", min: 0, "aria-label": "Step of the samples", oninput: () => this.draw() });
    this.step = h("span");
    this.texts = h("div");
    this.all = [];
    this.element = h("div", { class: "samples" }, h("p", { class: "pair" }, h("b", {}, "Samples"), this.slider, this.step), this.texts);
  }

  update(samples) {
    const newest = this.all.length === 0 || Number(this.slider.value) === this.all.length - 1;
    this.all = samples;
    this.element.hidden = !samples.length;
    this.slider.hidden = samples.length < 2;
    this.slider.max = samples.length - 1;
    if (newest) this.slider.value = samples.length - 1;
    this.draw();
  }

  draw() {
    const sample = this.all[Number(this.slider.value)];
    if (!sample) return;
    this.step.textContent = `step ${number(sample.step)}`;
    this.slider.setAttribute("aria-valuetext", this.step.textContent);
    this.texts.replaceChildren(...sample.texts.map((text) => h("pre", { dir: "auto" }, text)));
  }
}

/** Columns that are empty in every row are left out. */
function table(columns, all) {
  const used = columns.map((_, column) => all.some((row) => row[column] !== ""));
  const [head, ...rows] = [columns, ...all].map((row) => row.filter((_, column) => used[column]));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": head[0] }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
    h("tbody", {}, rows.map(([first, ...cells]) => h("tr", {}, h("th", { scope: "row" }, first), cells.map((cell) => h("td", {}, cell)))))));
}

const share = (value, digits = 1) => `${number(100 * value, digits)}%`;

function showEvaluation(all) {
  const evaluated = all.filter(({ evaluation }) => evaluation.sets || evaluation.loss);
  byId("evaluation").replaceChildren(...evaluated.flatMap(({ name, evaluation: { sets = {}, loss = {}, step } }) => {
    const rows = Object.entries(sets).map(([set, { examples, correct, accuracy, interval_95: [low, high] }]) =>
      [set, number(examples), number(correct), share(accuracy), `${share(low)} to ${share(high)}`]);
    const facts = Object.entries(loss).filter(([, value]) => typeof value === "number")
      .map(([key, value]) => `${key.replaceAll("_", " ")} ${short(value)}`);
    return [h("h2", {}, `Evaluation of ${name}`), rows.length ? table(["held-out set", "examples", "exact", "accuracy", "95% interval"], rows) : "",
      h("p", { class: "soft" }, `${facts.join(" · ")}${facts.length ? " · " : ""}step ${number(step ?? 0)}`)];
  }));
}

function showData({ data, audit }) {
  if (!data.length && !audit) return;
  byId("data").replaceChildren(h("h2", {}, "Data"), ...data.flatMap(dataOfStage), audit ? h("p", {},
    `Audit: ${audit.leaks ? `${number(audit.leaks)} held-out examples leak` : "no held-out example leaks"}; compared were `
    + Object.entries(audit.held_out).map(([name, count]) => `${name} ${number(count)}`).join(", ") + ".") : "");
}

function dataOfStage({ name, sources, splits, dropped, sha256 }) {
  const count = (side) => (side ? [number(side.documents), number(side.tokens)] : ["", ""]);
  const rows = sources.map((source) => [source.label, source.licence ?? "", source.revision ? h("code", {}, source.revision.slice(0, 12)) : "",
    ...count(source.train), ...count(source.validation)]);
  rows.push([h("b", {}, "all"), "", "", ...count(splits.train), ...count(splits.validation)]);
  const out = Object.entries(dropped).map(([what, number_]) => `${what} ${number(number_)}`).join(", ");
  return [h("h3", {}, name),
    sources.length || splits.train ? table(["source", "licence", "revision", "documents", "tokens", "held out", "tokens"], rows)
      : h("p", { class: "soft" }, "Its shards are not on this machine."),
    out ? h("p", { class: "soft" }, `Left out: ${out}.`) : "",
    sha256 ? h("p", { class: "soft" }, "Manifest ", h("code", { class: "hash", tabindex: 0 }, sha256)) : ""];
}

function showAbout({ recipe, environment }) {
  if (!recipe) return;
  const open = byId("about").querySelector("details")?.open ?? false;
  byId("about").replaceChildren(h("h2", {}, "Recipe and machine"),
    h("details", { open }, h("summary", {}, "The recipe, with every default"), h("pre", { tabindex: 0 }, h("code", {}, recipe))),
    h("dl", {}, Object.entries(environment).flatMap(([key, value]) => [h("dt", {}, key.replaceAll("_", " ")), h("dd", {}, String(value))])));
}

look();
