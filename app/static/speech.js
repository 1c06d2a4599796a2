// One press of Speak: asks for the stream, plays what comes, and keeps the times of every chunk.

import { Problem, readEvents, request } from "./api.js";
import { decodeWav, encodeWav, Playback } from "./audio.js";

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
  chunks = []; // those that are here whole: {text, batchSize, queue, infer, arrived, from, to}: milliseconds since the click
  firstAudioMs = null; // click until the first chunk is decoded
  firstSoundMs = null; // click until its first sample leaves
  madeMs = null; // click until the last chunk arrived
  #clicked = performance.now();
  #begins = null; // when the chunk sounds of which slices are here
  #abort = new AbortController();
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

  /** Reads the stream to its end. Throws Problem when the server refuses or fails. */
  async run() {
    try {
      const signal = this.#abort.signal;
      const response = await request("/synthesize/stream", { json: { ...this.body, slices: true }, signal });
      for await (const { event, data } of readEvents(response)) this.#take(event, data);
      if (!this.#end) throw new Error("the connection was closed before the last chunk");
    } catch (error) {
      if (this.#end === "stopped") return;
      this.#end = "failed";
      if (error instanceof Problem) throw error;
      throw new Problem({ title: "The stream broke off", detail: error.message });
    }
  }

  /** Ends the sound, and the request if it still runs, by which the server cancels the rest. */
  stop() {
    if (this.isReceiving) {
      this.#end = "stopped";
      this.#abort.abort();
    }
    this.playback?.silence();
  }

  wav() {
    return encodeWav(this.playback.pieces.map((piece) => piece.samples), this.playback.sampleRate);
  }

  #take(event, data) {
    if (event === "accepted") this.#accept(data);
    if (event === "chunk") this.#play(data);
    if (event === "done" || event === "cancelled") this.#end = event;
    if (event === "error") throw new Problem(data);
    this.onEvent(event);
  }

  #accept({ job_id: jobId, seed, total, warnings, sample_rate: sampleRate }) {
    Object.assign(this, { jobId, seed, total, warnings: warnings ?? [] });
    this.playback = new Playback(audioContext(sampleRate));
  }

  #play(data) {
    const { samples } = decodeWav(data.audio_base64);
    const arrived = performance.now() - this.#clicked;
    const sounds = arrived + this.playback.add(samples, data.index, data.is_last_slice) * 1000;
    const from = this.#begins ?? sounds;
    this.madeMs = arrived;
    this.firstAudioMs ??= arrived;
    this.firstSoundMs ??= from + this.playback.context.baseLatency * 1000;
    this.#begins = data.is_last_slice ? null : from;
    if (!data.is_last_slice) return;
    this.chunks.push({
      text: data.text, batchSize: data.batch_size, queue: data.queue_time_ms,
      infer: data.inference_time_ms, arrived, from,
      to: sounds + (samples.length / this.playback.sampleRate) * 1000,
    });
  }
}
