// The chat page: one conversation at a time, its answers streamed from the server's own OpenAI-compatible API.

import { Trouble, json, stream } from "./client.js";
import { byId, h, number } from "./dom.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { hideCard, readTokens } from "./tokens.js";
import { editor, turnElement } from "./turns.js";

const TOP = 5; // alternatives asked for of every token

let model = null;
let current = null; // the conversation on the page
let atWork = null; // AbortController of the answer that is being streamed
let answered = null; // the conversation that it belongs to
let follows = true; // whether the page scrolls along with the answer

// --- asking -------------------------------------------------------------------------------------------------------

async function ask(text) {
  const wrong = settings.wrong();
  if (wrong) {
    say(wrong.message);
    return wrong.input.focus();
  }
  current ??= store.begin(model.name);
  setAside(current.turns.at(-1));
  if (text) current.turns.push({ role: "user", content: text });
  byId("ask").value = "";
  grow();
  await answer();
}

/** A message without an answer would be read together with the next one, so it is left out, and shows that it is. */
function setAside(last) {
  if (model.mode !== "chat" || last?.role !== "assistant" || last.content) return;
  last.left_out = true;
  const before = current.turns.at(-2);
  if (before?.role === "user") before.left_out = true;
}

async function answer() {
  const conversation = current;
  const turn = { role: "assistant", content: "" };
  const { path, body } = request(conversation.turns);
  conversation.turns.push(turn);
  atWork = new AbortController();
  answered = conversation;
  follows = true;
  working(true);
  render();
  const began = performance.now();
  const clock = { first: null, last: null, pieces: 0, usage: null };
  try {
    for await (const chunk of stream(path, body, atWork.signal)) take(chunk, turn, clock);
  } catch (error) {
    if (error.name === "AbortError") turn.stopped = true;
    else if (error instanceof Trouble) turn.error = { kind: error.kind, message: error.message };
    else turn.error = { kind: "broken", message: `The answer could not be read (${error.message}).` };
  }
  atWork = null;
  measure(turn, clock, began);
  if (conversation.turns.includes(turn) && !store.touch(conversation)) say("This browser has no room left for conversations: export them, then delete some.");
  working(false);
  render();
  tell(turn);
}

/** The request for the next turn. */
function request(turns) {
  const body = { model: model.name, stream: true, stream_options: { include_usage: true }, ...settings.chosen() };
  const read = turns.filter((turn) => !turn.left_out && turn.content);
  if (model.mode === "text") {
    if (settings.probabilities()) body.logprobs = TOP;
    return { path: "/v1/completions", body: { ...body, prompt: read.map((turn) => turn.content).join("") } };
  }
  if (settings.probabilities()) Object.assign(body, { logprobs: true, top_logprobs: TOP });
  const said = model.mode === "shell" ? read.slice(-1) : read; // a command's instruction stands by itself
  const messages = said.map(({ role, content }) => ({ role, content }));
  if (settings.system()) messages.unshift({ role: "system", content: settings.system() });
  return { path: "/v1/chat/completions", body: { ...body, messages } };
}

function take(chunk, turn, clock) {
  if (chunk.usage) clock.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  if (choice.finish_reason) turn.finish = choice.finish_reason;
  const text = choice.delta?.content ?? choice.text ?? "";
  const tokens = readTokens(choice.logprobs);
  if (tokens.length) (turn.tokens ??= []).push(...tokens);
  if (!text && !tokens.length) return;
  turn.content += text;
  clock.last = performance.now();
  clock.first ??= clock.last;
  clock.pieces += 1;
  draw();
}

/**
 * Tokens and their rate, as the server counted them; of an answer that was stopped, as many as came. The rate is that
 * after the first token, but where all came at once.
 */
function measure(turn, { first, last, pieces, usage }, began) {
  if (first === null) return;
  const tokens = usage?.completion_tokens ?? turn.tokens?.length ?? pieces;
  const rate = last - first > 20 ? (tokens - 1) / (last - first) : tokens / Math.max(last - began, 1);
  turn.stats = { tokens, first: (first - began) / 1000, rate: 1000 * rate };
  if (usage?.context) turn.stats.context = usage.context;
}

function retry() {
  if (current.turns.at(-1)?.role === "assistant") current.turns.pop();
  answer();
}

function goOn() {
  answer();
}

/** Leaves out the oldest half of what is read, whole exchanges at a time, and asks again; what is left out shows it. */
function shorten() {
  current.turns.pop();
  const starts = current.turns.map((turn, index) => [turn, index]).filter(([turn]) => turn.role === "user" && !turn.left_out);
  if (starts.length < 2) {
    say("This message alone is too long for the model: edit it.");
    current.turns.push({ role: "assistant", content: "", error: { kind: "refused", message: "The message alone is too long for the model." } });
    return render();
  }
  const from = starts[Math.ceil(starts.length / 2)]?.[1] ?? starts.at(-1)[1];
  current.turns.slice(0, from).forEach((turn) => (turn.left_out = true));
  return answer();
}

function edit(index, element) {
  const whole = model.mode === "text";
  const text = whole ? current.turns.map((turn) => turn.content).join("") : current.turns[index].content;
  const form = editor(text, whole ? "The model goes on from here." : "What follows is asked anew.", (changed) => {
    current.turns.length = whole ? 0 : index;
    ask(changed);
  }, render);
  (whole ? byId("turns") : element).replaceChildren(form);
  form.querySelector("textarea").focus();
}

// --- showing ------------------------------------------------------------------------------------------------------

let drawing = false;
let pause = 0; // ms: a long answer is drawn less often, so that drawing never takes more than a fifth of the time

/** Whether the conversation on the page is being answered. */
const isBusy = () => atWork !== null && current === answered;

/** Redraws the turn that grows, once a frame at most. */
function draw() {
  if (drawing) return;
  drawing = true;
  setTimeout(requestAnimationFrame, pause, () => {
    drawing = false;
    const last = byId("turns").lastElementChild;
    if (!isBusy() || !last) return;
    const began = performance.now();
    last.replaceWith(element(current.turns.at(-1), current.turns.length - 1));
    if (follows) toEnd();
    pause = 4 * (performance.now() - began);
  });
}

function element(turn, index) {
  const is = { mode: model.mode, last: index === current.turns.length - 1, busy: isBusy(), probabilities: settings.probabilities() };
  const made = turnElement(turn, { retry, goOn, shorten, edit: () => edit(index, made) }, is);
  return made;
}

function render() {
  hideCard();
  const turns = current?.turns ?? [];
  byId("turns").className = `mode-${model?.mode ?? "chat"}`;
  byId("turns").replaceChildren(...turns.map(element));
  byId("empty").hidden = turns.length > 0;
  byId("origin").hidden = !current || !model || current.model === model.name;
  byId("origin").textContent = `This conversation was begun with another model, ${current?.model}.`;
  const stats = turns.findLast((turn) => turn.stats?.context)?.stats;
  byId("context").replaceChildren(...(stats ? gauge(stats.context) : model ? [`Context: ${number(model.context)} tokens`] : []));
  byId("speed").textContent = stats?.rate ? `${number(stats.rate, 1)} tokens/s` : "";
  list();
  if (follows) toEnd();
}

function gauge({ used, limit }) {
  const meter = h("meter", { min: 0, max: limit, high: 0.8 * limit, value: used, "aria-label": "Context used" });
  return [meter, `Context: ${number(used)} of ${number(limit)} tokens`];
}

function toEnd() {
  const box = byId("scroll");
  box.scrollTop = box.scrollHeight;
}

function working(busy) {
  document.body.classList.toggle("busy", busy);
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  if (busy) status("Answering.");
  if (document.activeElement === document.body) byId("ask").focus();
}

/** A line for everyone, with a button if there is something to be done. */
function say(message, label = null, action = null) {
  const close = () => (byId("notice").hidden = true);
  const button = label && h("button", { type: "button", onclick: () => { close(); action(); } }, label);
  byId("notice").replaceChildren(h("span", { role: "alert" }, message), button ?? "",
    h("button", { type: "button", class: "quiet", "aria-label": "Close this message", onclick: close }, "×"));
  byId("notice").hidden = false;
}

/** A line for those who hear the page. */
const status = (message) => (byId("status").textContent = message);

function tell(turn) {
  if (!turn.error) status(turn.stopped ? `Stopped. ${turn.content}` : `The model: ${turn.content}`);
}

function list() {
  byId("conversations").replaceChildren(...store.conversations.map((each) => h("li", { class: each === current ? "current" : "" },
    h("button", { type: "button", class: "open", "aria-current": each === current ? "true" : null, onclick: () => open(each) },
      h("span", { dir: "auto" }, each.title || "Untitled")),
    h("button", { type: "button", class: "quiet", "aria-label": `Delete ${each.title || "untitled"}`, onclick: () => forget(each) }, "×"))));
}

function open(conversation) {
  atWork?.abort();
  current = conversation;
  follows = true;
  closeDrawers();
  render();
  byId("ask").focus();
}

function forget(conversation) {
  if (conversation === current) {
    atWork?.abort();
    current = null;
  }
  const putBack = store.remove(conversation.id);
  store.save();
  render();
  say("The conversation is deleted.", "Undo", () => {
    putBack();
    store.save();
    render();
  });
}

// --- files --------------------------------------------------------------------------------------------------------

function exportFile() {
  const url = URL.createObjectURL(new Blob([store.asFile()], { type: "application/json" }));
  h("a", { href: url, download: `conversations-${new Date().toISOString().slice(0, 10)}.json` }).click();
  URL.revokeObjectURL(url);
}

async function importFile(file) {
  try {
    const count = store.addFile(await file.text());
    say(`${count} conversation${count === 1 ? "" : "s"} imported.`);
  } catch (error) {
    say(`The file is not imported: ${error.message}. Nothing here has changed.`);
  }
  list();
}

// --- the page -----------------------------------------------------------------------------------------------------

function grow() {
  const field = byId("ask");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 0.4 * innerHeight)}px`;
}

function closeDrawers() {
  for (const id of ["list", "settings"]) drawer(id, false);
}

function drawer(id, shown) {
  const button = byId(`open-${id}`);
  const was = button.getAttribute("aria-expanded") === "true";
  byId(id).classList.toggle("open", shown);
  button.setAttribute("aria-expanded", shown);
  byId("veil").hidden = !shown;
  if (shown) byId(id).querySelector("button, input").focus();
  else if (was) button.focus();
}

const WORDS = {
  chat: { label: "Message", placeholder: "Ask something", send: "Send", title: "Ask the model" },
  shell: { label: "Instruction", placeholder: "Say what to do", send: "Ask", title: "English to one shell command",
    says: "Each instruction stands by itself. Nothing is run here: read the command, then copy it." },
  text: { label: "Text", placeholder: "Begin a text…", send: "Go on", title: "Begin a text, the model goes on",
    says: "This is a base model: it does not answer, it continues." },
};

function greet() {
  const words = WORDS[model.mode];
  byId("ask-label").textContent = words.label;
  byId("ask").placeholder = words.placeholder;
  byId("send").textContent = words.send;
  const examples = model.examples.map((text) => h("button", { type: "button", dir: "auto", onclick: () => ask(text) }, text));
  byId("empty").replaceChildren(h("h2", {}, words.title), h("p", { class: "soft" }, words.says ?? model.description),
    examples.length ? h("div", { class: "examples" }, examples) : "");
}

async function start() {
  wire();
  settings.setUp(() => {
    if (!atWork) render();
  });
  try {
    model = await json("/api/model");
  } catch (error) {
    byId("empty").replaceChildren(h("h2", {}, "No model to talk to"), h("p", { role: "alert" }, error.message),
      h("p", {}, h("a", { href: "/run" }, "See the run")));
    document.body.classList.add("no-model");
    return list();
  }
  settings.describe(model);
  greet();
  current = null;
  render();
  byId("ask").focus();
}

function wire() {
  byId("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    await ready; // whoever types faster than the model is described
    if (!model) return;
    const text = model.mode === "text" ? byId("ask").value : byId("ask").value.trim();
    if (!atWork && (text || (model.mode === "text" && current?.turns.length))) ask(text);
  });
  byId("ask").addEventListener("input", grow);
  byId("ask").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("form").requestSubmit();
  });
  byId("stop").addEventListener("click", () => {
    atWork?.abort();
    byId("ask").focus();
  });
  byId("new").addEventListener("click", () => open(null));
  byId("export").addEventListener("click", exportFile);
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async ({ target }) => {
    if (target.files[0]) await importFile(target.files[0]);
    target.value = "";
  });
  for (const id of ["list", "settings"]) {
    byId(`open-${id}`).addEventListener("click", () => drawer(id, !byId(id).classList.contains("open")));
  }
  byId("veil").addEventListener("click", closeDrawers);
  byId("scroll").addEventListener("scroll", () => {
    const box = byId("scroll");
    follows = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    hideCard();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!byId("veil").hidden) closeDrawers();
    else atWork?.abort();
  });
  addEventListener("storage", (event) => {
    if (atWork || event.key !== "leveret.conversations") return;
    store.reload();
    current = store.conversations.find((each) => each.id === current?.id) ?? null;
    render();
  });
}

const ready = start();
