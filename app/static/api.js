// Talks to the server: requests, problems, and Server-Sent Events from a POST.
// EventSource cannot send a body, so the event stream is read from fetch and parsed here.

import { session } from "./storage.js";

/** An application/problem+json answer, or anything that went wrong on the way to one. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, errors = [] }, retryAfter = 0) {
    super(`${title}: ${detail}`);
    Object.assign(this, { title, detail, status, errors: errors ?? [], retryAfter });
  }
}

export const apiKey = {
  get: () => session.get("supertonic.key") ?? "",
  set: (key) => session.set("supertonic.key", key),
};

/** fetch that throws a Problem for every answer that is not a success. */
export async function request(path, { json, headers = {}, ...options } = {}) {
  const sent = { ...headers };
  if (apiKey.get()) sent.Authorization = `Bearer ${apiKey.get()}`;
  if (json !== undefined) {
    sent["Content-Type"] = "application/json";
    options = { method: "POST", body: JSON.stringify(json), ...options };
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers: sent });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "No answer", detail: "The server cannot be reached." });
  }
  if (!response.ok) throw await problemFrom(response);
  return response;
}

async function problemFrom(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  const type = response.headers.get("Content-Type") ?? "";
  // A proxy in between may answer in HTML; its status is then all there is to say.
  const body = type.includes("json") ? await response.json().catch(() => ({})) : {};
  const fallback = { title: response.statusText || "Request failed", status: response.status };
  return new Problem({ ...fallback, ...body }, retryAfter);
}

/** Cuts text that arrives in arbitrary pieces into events {id, event, data}. */
export class SseParser {
  #rest = "";
  #id = "";
  #event = "";
  #data = [];

  /** Takes the next piece of text, returns the events it completes. */
  push(text) {
    this.#rest += text;
    const events = [];
    // A lone CR at the end may be half of a CRLF, so it waits for the next piece.
    for (let end; (end = /\r\n|\n|\r(?!$)/.exec(this.#rest)); ) {
      const event = this.#line(this.#rest.slice(0, end.index));
      this.#rest = this.#rest.slice(end.index + end[0].length);
      if (event) events.push(event);
    }
    return events;
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return null;
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id") this.#id = value;
    return null;
  }

  #dispatch() {
    const event = { id: this.#id, event: this.#event || "message", data: this.#data.join("\n") };
    const isEmpty = this.#data.length === 0;
    this.#event = "";
    this.#data = [];
    return isEmpty ? null : event;
  }
}

// The server shows a sign of life every 15 seconds; without one the connection is taken for dead.
const SILENCE_MS = 45_000;

/** Yields the events of a streaming response, `data` already parsed as JSON. A broken connection
 * ends them, too: only the last event tells whether all have come. */
export async function* readEvents(response) {
  const parser = new SseParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const timer = setTimeout(() => reader.cancel(), SILENCE_MS);
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    clearTimeout(timer);
    if (done) return;
    for (const event of parser.push(value)) yield { ...event, data: JSON.parse(event.data) };
  }
}
