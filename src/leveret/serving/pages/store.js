// Conversations and settings, kept in this browser alone; written to and read from files of JSON.

const CONVERSATIONS = "leveret.conversations";
const SETTINGS = "leveret.settings";
const FORMAT = "leveret-conversations";
const VERSION = 1;
const ROLES = ["user", "assistant"];

/** A conversation: {id, title, created, updated, model, turns: [{role, content, ...}]}, the newest first. */
export let conversations = [];
let unreadable = []; // what is kept and cannot be shown, perhaps of a newer version: it stays

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keeps a value; false if the browser has no room or no storage for it. */
function keep(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export const save = () => keep(CONVERSATIONS, [...conversations, ...unreadable]);

/** Takes over what is kept, by this tab or another. */
export function reload() {
  const kept = [read(CONVERSATIONS, [])].flat();
  conversations = kept.filter(isConversation);
  unreadable = kept.filter((each) => !isConversation(each));
}

export const loadSettings = () => read(SETTINGS, {});
export const saveSettings = (settings) => keep(SETTINGS, settings);

export function begin(model) {
  const now = new Date().toISOString();
  const conversation = { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", created: now, updated: now, model, turns: [] };
  conversations.unshift(conversation);
  return conversation;
}

/** Takes a conversation out; returns what puts it back. */
export function remove(id) {
  const place = conversations.findIndex((each) => each.id === id);
  const [gone] = conversations.splice(place, 1);
  return () => conversations.splice(place, 0, gone);
}

const titleOf = ({ turns }) => [...String(turns[0]?.content ?? "").trim().split("\n")[0]].slice(0, 60).join("");

/** Notes a change: the conversation comes first and is kept. */
export function touch(conversation) {
  conversation.updated = new Date().toISOString();
  conversation.title ||= titleOf(conversation);
  conversations = [conversation, ...conversations.filter((each) => each !== conversation)];
  return save();
}

export const asFile = () =>
  JSON.stringify({ format: FORMAT, format_version: VERSION, exported: new Date().toISOString(), conversations }, null, 2);

/** The file that `leveret chat` saves, as an export of one conversation; what it says of settings stays behind. */
function fromDialogue({ format_version, model, messages }) {
  const now = new Date().toISOString();
  const conversation = { id: `${Date.now()}-${Math.random()}`, title: "", created: now, updated: now, model: model ?? "", turns: messages };
  conversation.title = titleOf(conversation);
  return { format: FORMAT, format_version, conversations: [conversation] };
}

/**
 * Adds the conversations of an exported file, or the dialogue of a terminal; those that are here already, unchanged, are not added twice.
 * Returns how many were added. Throws an Error that says what is wrong with the file, and changes nothing then.
 */
export function addFile(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON");
  }
  if (Array.isArray(file?.messages)) file = fromDialogue(file);
  if (file?.format !== FORMAT) throw new Error("it is no export of conversations");
  if (file.format_version !== VERSION) throw new Error(`it has format version ${file.format_version}, not ${VERSION}`);
  if (!Array.isArray(file.conversations)) throw new Error("it holds no list of conversations");
  const wrong = file.conversations.findIndex((each) => !isConversation(each));
  if (wrong >= 0) throw new Error(`its conversation ${wrong + 1} is damaged`);
  const known = new Set(conversations.map((each) => JSON.stringify(each)));
  const ids = new Set(conversations.map((each) => each.id));
  const added = file.conversations.filter((each) => !known.has(JSON.stringify(each)));
  for (const each of added) if (ids.has(each.id)) each.id = `${each.id}-${Date.now()}`;
  const before = conversations;
  conversations = [...added, ...conversations].sort((a, b) => (a.updated < b.updated ? 1 : -1));
  if (save()) return added.length;
  conversations = before;
  throw new Error("this browser has no room for it");
}

function isConversation(each) {
  const strings = [each?.id, each?.title, each?.created, each?.updated];
  return strings.every((value) => typeof value === "string") && Array.isArray(each.turns) && each.turns.every(isTurn);
}

/** Whether a turn has what must be there, and of all else only what can be shown. */
function isTurn(turn) {
  if (!ROLES.includes(turn?.role) || typeof turn.content !== "string") return false;
  const { tokens, stats, error } = turn;
  return fits(tokens, Array.isArray) && (tokens ?? []).every((token) => isChoice(token) && Array.isArray(token.top) && token.top.every(isChoice))
    && fits(stats, isStats) && fits(error, ({ kind, message }) => typeof kind === "string" && typeof message === "string");
}

const fits = (value, check) => value === undefined || (value !== null && check(value));
const isNumber = (value) => typeof value === "number";
const isChoice = (token) => typeof token?.text === "string" && isNumber(token.logprob);
const isStats = ({ tokens, first, rate, context }) =>
  [tokens, first, rate].every(isNumber) && fits(context, ({ used, limit }) => isNumber(used) && isNumber(limit));

reload();
