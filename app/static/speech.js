// One press of Speak: asks for the stream, plays what comes, and keeps the times of every chunk.

import { Problem, readEvents, request } from "./api.js";
import { decodeWav, encodeWav, Playback } from "./audio.js";

// A broken connection is tried again for so long, with pauses that grow.
const GIVE_UP_MS = 60_000;
const PAUSE_MS = { first: 500, longest: 5000 };

let context = null;

/** The page's one AudioContext, at the voice's rate: resampling chunk by chunk would click. */
export function audioContext(sampleRate) {
  if (context?.sampleRate !== sampleRate) {
    context?.close();
    context = new AudioContext({ sampleRate });
  }
  context.resume();
  return context;
}

export class Speech {
  playback = null;
  jobId = null;
  seed = null;
  total = 0;
  warnings = [];
  chunks = []; // those that are here whole: {index, text, batchSize, queue, infer, arrived, from, to}: milliseconds since the click
  firstAudioMs = null; // click until the first chunk is decoded
  firstSoundMs = null; // click until its first sample leaves
  madeMs = null; // click until the last chunk arrived
  #clicked = performance.now();
  #begins = null; // when the chunk sounds of which slices are here
  #abort = new AbortController();
  #lastId = ""; // of the events seen so far, where the server goes on
  #lost = null; // {since, pauseMs} from a break of the connection until the next event
  #end = ""; // done, stopped, cancelled or failed

  /** onEvent is called after each event has been taken in. */
  constructor(body, onEvent) {
    this.body = body;
    this.onEvent = onEvent;
  }

  /** waiting, playing, paused, then finished, stopped, cancelled or failed. */
  get state() {
    if (this.playback?.isSounding) {
      return this.playback.context.state === "suspended" ? "paused" : "playing";
    }
    return this.#end === "done" ? "finished" : this.#end || "waiting";
  }

  get isReceiving() {
    return this.#end === "";
  }

  get isReconnecting() {
    return this.isReceiving && this.#lost !== null;
  }

  /** Reads the stream to its end, over as many connections as it takes. Throws Problem when the
   * server refuses or fails. */
  async run() {
    try {
      let response = await this.#begin();
      while (this.isReceiving) {
        await this.#read(response);
        if (this.isReceiving) response = await this.#reconnect();
      }
    } catch (error) {
      if (this.#end === "stopped") return;
      if (this.isReceiving && this.jobId) this.#cancel();
      this.#end = "failed";
      if (error instanceof Problem) throw error;
      throw new Problem({ title: "The stream broke off", detail: error.message });
    }
  }

  /** Ends the sound, and the job if it still runs. */
  stop() {
    if (this.isReceiving) {
      this.#end = "stopped";
      if (this.jobId) this.#cancel();
    }
    this.playback?.silence();
  }

  wav() {
    return encodeWav(this.playback.pieces.map((piece) => piece.samples), this.playback.sampleRate);
  }

  async #begin() {
    const json = { ...this.body, slices: true, resumable: true };
    const response = await request("/synthesize/stream", { json, signal: this.#abort.signal });
    this.jobId = response.headers.get("X-Job-Id");
    if (!this.isReceiving) this.#cancel(); // stopped before the job had a name to cancel it by
    return response;
  }

  async #read(response) {
    for await (const { id, event, data } of readEvents(response)) {
      if (!this.isReceiving) return;
      this.#lastId = id || this.#lastId;
      this.#lost = null;
      this.#take(event, data);
    }
  }

  async #reconnect() {
    const lost = (this.#lost ??= { since: performance.now(), pauseMs: PAUSE_MS.first });
    const headers = this.#lastId ? { "Last-Event-ID": this.#lastId } : {};
    const options = { headers, signal: this.#abort.signal };
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, lost.pauseMs));
      lost.pauseMs = Math.min(lost.pauseMs * 1.5, PAUSE_MS.longest);
      const answer = await request(`/jobs/${this.jobId}/events`, options).catch((error) => error);
      if (answer.status === 200) return answer;
      if (answer.status === 401) throw answer;
      const isAway = answer.status === 0 || answer.status >= 500;
      if (!isAway || performance.now() - lost.since > GIVE_UP_MS) {
        throw new Error("the connection was closed before the last chunk");
      }
    }
  }

  // A job that may be resumed goes on when its listener leaves, so the server has to be told; with
  // keepalive it is told even by a page that is being closed.
  #cancel() {
    this.#abort.abort();
    request(`/jobs/${this.jobId}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }

  #take(event, data) {
    if (event === "accepted") this.#accept(data);
    if (event === "chunk") this.#play(data);
    if (event === "gap") this.#skip(data);
    if (event === "done" || event === "cancelled") this.#end = event;
    if (event === "error") {
      this.#end = "failed";
      throw new Problem(data);
    }
    this.onEvent(event);
  }

  #accept({ job_id: jobId, seed, total, warnings, sample_rate: sampleRate }) {
    Object.assign(this, { jobId, seed, total, warnings: warnings ?? [] });
    this.playback = new Playback(audioContext(sampleRate));
  }

  #play(data) {
    const { samples } = decodeWav(data.audio_base64);
    const isLast = data.is_last_slice ?? true; // after a break the rest of a chunk comes in one
    const arrived = performance.now() - this.#clicked;
    const sounds = arrived + this.playback.add(samples, data.index, isLast) * 1000;
    const from = this.#begins ?? sounds;
    this.madeMs = arrived;
    this.firstAudioMs ??= arrived;
    this.firstSoundMs ??= from + this.playback.context.baseLatency * 1000;
    this.#begins = isLast ? null : from;
    if (!isLast) return;
    this.chunks.push({
      index: data.index, text: data.text, batchSize: data.batch_size, queue: data.queue_time_ms,
      infer: data.inference_time_ms, arrived, from,
      to: sounds + (samples.length / this.playback.sampleRate) * 1000,
    });
  }

  #skip({ index, detail }) {
    this.warnings.push(`Chunk ${index + 1}: ${detail}`);
    this.#begins = null;
  }
}
