// The panel of settings: how answers are drawn, the system prompt, and what the model is.

import { byId, h, number, short } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

/** [name in a request, name in the model's own settings, label, input's attributes, what it does] */
const CONTROLS = [
  ["temperature", "temperature", "Temperature", { min: 0, max: 2, step: 0.05 }, "0 always takes the most probable token"],
  ["top_p", "top_p", "Top-p", { min: 0.01, max: 1, step: 0.01 }, "Keep the fewest tokens that reach this probability together"],
  ["top_k", "top_k", "Top-k", { min: 0, step: 1 }, "Keep this many most probable tokens; 0 keeps all"],
  ["min_p", "min_p", "Min-p", { min: 0, max: 1, step: 0.01 }, "Keep tokens at least this times as probable as the best"],
  ["repetition_penalty", "repetition_penalty", "Repetition", { min: 0.1, max: 5, step: 0.05 }, "Above 1: less of what was said; 1 does nothing"],
  ["presence_penalty", "presence_penalty", "Presence", { min: -2, max: 2, step: 0.1 }, "Taken off every token that the answer has used"],
  ["frequency_penalty", "frequency_penalty", "Frequency", { min: -2, max: 2, step: 0.1 }, "Taken off a token each time that the answer has used it"],
  ["max_tokens", "max_new_tokens", "Most tokens", { min: 1, step: 1 }, "Of one answer"],
  ["seed", "seed", "Seed", { min: 0, step: 1 }, "The same seed draws the same answer"],
];

let onProbabilities = () => {};

export function setUp(probabilitiesChanged) {
  onProbabilities = probabilitiesChanged;
  const saved = loadSettings();
  byId("system").value = typeof saved.system === "string" ? saved.system : "";
  byId("probabilities").checked = saved.probabilities === true;
  for (const [name, , label, attributes, says] of CONTROLS) {
    const input = h("input", { id: `set-${name}`, type: "number", inputmode: "decimal", ...attributes, "aria-describedby": `says-${name}` });
    input.value = typeof saved[name] === "number" ? saved[name] : "";
    byId("controls").append(h("div", { class: "control", title: says }, h("label", { for: input.id }, label), input,
      h("span", { id: `says-${name}`, class: "hidden" }, says)));
  }
  byId("settings").addEventListener("input", keep);
  byId("probabilities").addEventListener("change", onProbabilities);
  byId("reset").addEventListener("click", () => {
    for (const [name] of CONTROLS) byId(`set-${name}`).value = "";
    byId("system").value = "";
    keep();
  });
}

const keep = () => saveSettings({ ...chosen(), system: byId("system").value, probabilities: probabilities() });

export const probabilities = () => byId("probabilities").checked;
export const system = () => byId("system").value.trim();

/** The settings that differ from the model's own, under their names in a request. */
export function chosen() {
  const given = CONTROLS.map(([name]) => [name, byId(`set-${name}`).valueAsNumber]);
  return Object.fromEntries(given.filter(([, value]) => !Number.isNaN(value)));
}

/** The first setting that cannot be, as {input, message}; null where all can. */
export function wrong() {
  for (const [name, , label] of CONTROLS) {
    const input = byId(`set-${name}`);
    const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = input.validity;
    if (badInput || rangeUnderflow || rangeOverflow || (stepMismatch && input.step === "1")) return { input, message: `${label}: ${input.validationMessage}` };
  }
  return null;
}

/** Shows what a model is; empty controls show its own settings. */
export function describe(model) {
  for (const [name, own] of CONTROLS) byId(`set-${name}`).placeholder = model.sampling[own] ?? (name === "seed" ? "random" : "off");
  byId("description").textContent = model.description;
  const speaksAlone = model.mode === "text";
  byId("system").hidden = byId("system-label").hidden = speaksAlone;
  const facts = [
    ["parameters", number(model.parameters)],
    ["layers × width", `${model.layers} × ${model.width}`],
    ["stage, step", model.step ? `${model.stage}, ${number(model.step)}` : model.stage],
    ["context", `${number(model.context)} tokens`],
    ["tokenizer", `${model.tokenizer.kind}, ${number(model.tokenizer.entries)} entries`],
    ["its SHA-256", hash(model.tokenizer.sha256)],
    ["weights' SHA-256", hash(model.weights_sha256)],
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  document.title = `${model.name} · Leveret`;
  byId("name").replaceChildren(model.name, h("span", { class: "soft" }, `${short(model.parameters)} parameters`));
}

const hash = (digest) => h("code", { class: "hash", tabindex: 0, title: digest, "aria-label": digest }, digest);
