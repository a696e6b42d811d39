// An answer token by token: each one tinted by its probability, its alternatives shown on hover or by the arrow keys.

import { byId, h, number } from "./dom.js";

const STEPS = [0.9, 0.6, 0.3, 0.1];

/** What the API says of tokens, in one form: {text, logprob, top: [{text, logprob}]}. */
export function readTokens(logprobs) {
  if (!logprobs) return [];
  if (Array.isArray(logprobs.content)) {
    return logprobs.content.map((token) => ({ ...choice(token), top: (token.top_logprobs ?? []).map(choice) }));
  }
  return (logprobs.tokens ?? []).map((text, index) => ({
    text,
    logprob: logprobs.token_logprobs[index] ?? 0,
    top: Object.entries(logprobs.top_logprobs?.[index] ?? {}).map(([other, logprob]) => ({ text: other, logprob })),
  }));
}

/** A token that is a part of a character is told by its bytes. */
function choice({ token, bytes, logprob }) {
  const hidden = token.includes("\ufffd") && Array.isArray(bytes);
  const text = hidden ? `⟨${bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}⟩` : token;
  return { text, logprob };
}

export const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  if (share < 0.001) return "<0.001%";
  return `${number(share, share >= 99.95 ? 0 : share >= 10 ? 1 : share >= 0.1 ? 2 : 3)}%`;
};

const level = (logprob) => STEPS.findIndex((bound) => Math.exp(logprob) >= bound) + 1 || STEPS.length + 1;

/** The tokens as a row that the tab key reaches once, and the arrow keys walk through. */
export function tokenRow(tokens) {
  const row = h("span", { class: "tokens", dir: "auto", role: "group", "aria-label": "Tokens of the answer; arrow keys walk through them" });
  tokens.forEach((token, index) => {
    row.append(h("span", {
      class: `token p${level(token.logprob)}`,
      tabindex: index ? -1 : 0,
      role: "button",
      "aria-label": `${visible(token.text)}, ${percent(token.logprob)}. ${others(token)}`,
      onmouseenter: (event) => showCard(event.target, token),
      onmouseleave: hideCard,
      onfocus: (event) => showCard(event.target, token),
      onblur: hideCard,
    }, token.text));
  });
  row.addEventListener("keydown", walk);
  return row;
}

const others = (token) => token.top.map((each) => `${visible(each.text)} ${percent(each.logprob)}`).join(", ");

function walk(event) {
  const all = [...event.currentTarget.children];
  const place = all.indexOf(document.activeElement);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: all.length - 1 }[event.key];
  if (event.key === "Escape") hideCard();
  if (place < 0 || all[to] === undefined) return;
  event.preventDefault();
  all[place].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

function showCard(element, token) {
  const card = byId("token-card");
  const shown = token.top.some((each) => each.text === token.text) ? token.top : [token, ...token.top];
  card.replaceChildren(
    h("table", {}, h("tbody", {}, shown.map((each) => {
      const bar = h("i");
      bar.style.width = `${Math.max(1, 100 * Math.exp(each.logprob))}%`;
      return h("tr", { class: each.text === token.text ? "chosen" : "" },
        h("th", { scope: "row" }, h("code", {}, visible(each.text))),
        h("td", { class: "bar" }, bar), h("td", {}, percent(each.logprob)));
    }))),
  );
  card.hidden = false;
  const at = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const size = card.getBoundingClientRect();
  const below = at.bottom + 6 + size.height < innerHeight;
  card.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
  card.style.top = `${below ? at.bottom + 6 : Math.max(8, at.top - 6 - size.height)}px`;
}

export function hideCard() {
  byId("token-card").hidden = true;
}

/** White space that would not be seen, as signs. */
const visible = (text) => (text === "" ? "∅" : text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥"));
