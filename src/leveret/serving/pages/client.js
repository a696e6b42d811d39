// Talks to the server: JSON, streams of events, and every way in which either can go wrong, in words for people.

/** What went wrong. kind: "long", "busy", "away", "key", "refused" or "broken". */
export class Trouble extends Error {
  constructor(kind, message, wait = null) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

export async function json(path, options = {}) {
  const response = await reach(path, options);
  return response.json();
}

/** A POST of JSON. */
export const post = (path, body, signal) =>
  reach(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** The chunks of a streamed answer, as they come. */
export async function* stream(path, body, signal) {
  const response = await post(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let done = false;
  while (!done) {
    const read = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Trouble("away", "The connection broke off in the middle of the answer.");
    });
    done = read.done;
    rest += read.value ?? "";
    const lines = rest.split(/\r?\n/);
    rest = done ? "" : lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Trouble("broken", chunk.error.message ?? "The server broke off the answer.");
      yield chunk;
    }
  }
  throw new Trouble("away", "The connection broke off in the middle of the answer.");
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("away", "The server does not answer. Is `leveret serve` still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw trouble(response.status, said.error ?? {}, Number(response.headers.get("Retry-After")) || null);
}

function trouble(status, error, wait) {
  const message = typeof error.message === "string" ? error.message : "";
  if (status === 401) return new Trouble("key", "The server asks for its key. Reload the page and give it as the password.");
  if (status === 429) {
    const pause = wait ? ` Try again in ${wait} s.` : " Try again in a moment.";
    return new Trouble("busy", `The server is busy with other requests.${pause}`, wait);
  }
  if (error.code === "context_length_exceeded") return new Trouble("long", message);
  if (status === 503) return new Trouble("away", message || "The server is not ready to answer.", wait);
  if (status >= 500 && status !== 504) return new Trouble("broken", "Something broke in the server; its log says what.");
  return new Trouble("refused", message || `The server refused the request (${status}).`);
}
