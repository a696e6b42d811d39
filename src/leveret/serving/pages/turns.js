// Turns of a conversation as elements. All text is set as text.

import { h, number } from "./dom.js";
import { post } from "./client.js";
import { tokenRow } from "./tokens.js";

/**
 * One turn. do: what its buttons call ({edit, retry, shorten, say}); is: {mode, last, busy, probabilities}.
 */
export function turnElement(turn, does, is) {
  const who = turn.role === "user" ? "You" : "Model";
  const element = h("article", { class: `turn ${turn.role}${turn.left_out ? " left-out" : ""}`, "aria-label": who });
  if (turn.left_out) element.append(h("p", { class: "note" }, "Left out: the model does not read this."));
  element.append(body(turn, is));
  if (turn.error) element.append(trouble(turn, does, is));
  if (!(is.busy && is.last)) element.append(foot(turn, does, is));
  return element;
}

/** The text of a turn; its element has the class `text` where it grows while it streams. */
function body(turn, { mode, probabilities, busy, last }) {
  const streaming = busy && last;
  const tokens = turn.role === "assistant" && probabilities && turn.tokens?.length ? tokenRow(turn.tokens) : null;
  if (streaming && !turn.content) return h("p", { class: "text waiting", "aria-label": "Waiting for the first token" }, h("i"), h("i"), h("i"));
  if (mode === "shell" && turn.role === "assistant") {
    return turn.content.trim() ? commandBox(turn, streaming, tokens) : turn.error ? "" : h("p", { class: "note" }, "The model gave no command.");
  }
  if (tokens) return tokens;
  if (!turn.content && turn.role === "assistant" && !turn.error) return h("p", { class: "note" }, "The answer is empty.");
  return h("div", { class: "text" }, mode === "text" ? turn.content : paragraphs(turn.content));
}

/** Text with its fenced code set apart. */
function paragraphs(text) {
  return text.split(/^(```[^\n]*\n[\s\S]*?(?:^```[ \t]*$|$(?![\s\S])))/m).map((part) => {
    const code = part.match(/^```([^\n]*)\n([\s\S]*?)\n?(?:```[ \t]*)?$/);
    if (!code) return part.trim() ? h("p", { dir: "auto" }, part.trim()) : null;
    return h("pre", { tabindex: 0, "aria-label": `Code ${code[1].trim()}`, dir: "ltr" }, h("code", {}, code[2]));
  });
}

function commandBox(turn, streaming, tokens) {
  const command = turn.content.trim();
  const line = h("pre", { dir: "ltr", tabindex: tokens ? null : 0, "aria-label": "Command" }, tokens ?? h("code", {}, command));
  const box = h("div", { class: "command" }, line);
  if (!streaming) {
    box.append(copyButton(command, "Copy"));
    box.append(h("p", { class: "danger", role: "alert", hidden: true }));
    warn(command, box.lastChild);
  }
  return box;
}

const known = new Map(); // command -> what is destructive about it

/** Says what is destructive about a command, as the server's list knows it. */
async function warn(command, line) {
  try {
    if (!known.has(command)) known.set(command, (await (await post("/api/dangers", { command })).json()).dangers);
    const dangers = known.get(command);
    line.textContent = dangers.length ? `Careful: this ${dangers.join(", ")}.` : "";
  } catch {
    line.textContent = "This command could not be checked for danger: read it with care.";
  }
  line.hidden = !line.textContent;
}

function copyButton(text, label) {
  const button = h("button", { type: "button", class: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it and press Ctrl+C";
    }
    setTimeout(() => (button.textContent = label), 2000);
  } }, label);
  return button;
}

function trouble(turn, does, { mode }) {
  const box = h("div", { class: "trouble", role: "alert" }, h("p", {}, turn.error.message));
  const button = (label, action) => h("button", { type: "button", onclick: action }, label);
  if (turn.error.kind === "long" && mode === "chat") {
    box.append(button("Leave out the oldest turns and ask again", does.shorten));
  } else if (turn.error.kind === "long") {
    box.append(h("p", { class: "soft" }, "Shorten the text with Edit."));
  } else if (turn.error.kind === "key") {
    box.append(button("Reload", () => location.reload()));
  } else {
    box.append(button("Try again", does.retry));
  }
  return box;
}

/** Figures and buttons under a turn. */
function foot(turn, does, { mode, last, busy, probabilities }) {
  const row = h("p", { class: "foot" });
  const button = (label, action, says) => row.append(h("button", { type: "button", class: "quiet", onclick: action, disabled: busy, "aria-label": says }, label));
  if (turn.role === "assistant") {
    const facts = figures(turn);
    if (probabilities && turn.content && !turn.tokens?.length) facts.push(`no probabilities kept${last ? ": retry shows them" : ""}`);
    row.append(h("span", {}, facts.join(" · ")));
    if (turn.content && mode !== "shell") row.append(copyButton(turn.content, "Copy"));
    if (last && mode === "text" && !turn.error) button("Go on", does.goOn, "Go on with the text");
    if (last && !turn.error) button("Retry", does.retry, "Retry: another answer in place of this one");
  }
  if (turn.role === "user" && mode !== "text") button("Edit", does.edit, "Edit this message");
  if (mode === "text" && last) button("Edit", does.edit, "Edit the whole text");
  return row;
}

function figures({ stats, stopped, finish }) {
  const facts = [];
  if (stats?.tokens) facts.push(`${number(stats.tokens)} token${stats.tokens === 1 ? "" : "s"}`);
  if (stats?.rate) facts.push(`${number(stats.rate, stats.rate < 100 ? 1 : 0)} tokens/s`);
  if (stats?.first) facts.push(`first after ${number(stats.first, 2)} s`);
  if (stopped) facts.push("stopped");
  if (finish === "length") facts.push("ended at the most tokens allowed or the end of the context");
  return facts;
}

/** A turn as a field to be changed; a note says what happens then. */
export function editor(text, note, save, cancel) {
  const field = h("textarea", { rows: Math.min(12, text.split("\n").length + 1), dir: "auto", "aria-label": "Edit" });
  field.value = text;
  const form = h("form", { class: "editor", onsubmit: (event) => {
    event.preventDefault();
    if (field.value.trim()) save(field.value);
  } }, field, h("p", { class: "pair" }, h("span", { class: "soft" }, note),
    h("button", { type: "button", onclick: cancel }, "Cancel"), h("button", { class: "main" }, "Send")));
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  return form;
}
