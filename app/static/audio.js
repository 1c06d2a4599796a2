// WAV in and out, and gapless playback of chunks that arrive one by one. Positions are counted in
// samples; every chunk starts on the exact sample after the one before it, so joins are inaudible.

// Room between "now" and the first sample, so that the audio thread sees the source in time.
const LEAD_S = 0.03;
// A chunk that would have to start sooner than this counts as late.
const LATE_S = 0.005;
// How far ahead of the sound pieces are scheduled: a scheduled one takes three times its memory.
const AHEAD_S = 60;

/** Reads a 16-bit mono WAV held in base64. Returns {sampleRate, samples: Int16Array}. */
export function decodeWav(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const name = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  if (name(0) !== "RIFF" || name(8) !== "WAVE") throw new Error("not a WAV file");
  let sampleRate = 0;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const size = view.getUint32(at + 4, true);
    if (name(at) === "fmt ") {
      sampleRate = view.getUint32(at + 12, true);
      const layout = [8, 10, 22].map((offset) => view.getUint16(at + offset, true));
      if (String(layout) !== "1,1,16") throw new Error("expected 16-bit mono PCM");
    }
    if (name(at) === "data") {
      const end = Math.min(at + 8 + size, bytes.length);
      return { sampleRate, samples: new Int16Array(bytes.buffer.slice(at + 8, end)) };
    }
    at += 8 + size + (size % 2);
  }
  throw new Error("WAV file without data");
}

/** Joins Int16Arrays into one WAV file. */
export function encodeWav(pieces, sampleRate) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const text = (at, value) => {
    for (let i = 0; i < value.length; i++) header.setUint8(at + i, value.charCodeAt(i));
  };
  text(0, "RIFF");
  header.setUint32(4, 36 + size, true);
  text(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, sampleRate, true);
  header.setUint32(28, sampleRate * 2, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  text(36, "data");
  header.setUint32(40, size, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}

/** Plays pieces in order. `add` them as they arrive; `seek` may jump anywhere in what is here. */
export class Playback {
  // A piece is a chunk or a slice of one: {chunk, isLast, start, samples}; chunk is its number,
  // start counts samples from the beginning of the speech.
  pieces = [];
  length = 0; // samples received
  gaps = 0;
  gapSeconds = 0;
  played = new Set(); // chunks heard to their end
  #scheduled = []; // {chunk, at, from, length}: at = sample on the context's own clock
  #sources = new Set();
  #upcoming = 0; // the first piece that is not scheduled yet
  #next = null; // sample on the context's clock where the next chunk belongs; null = not started

  constructor(context, aheadS = AHEAD_S) {
    Object.assign(this, { context, aheadS });
    this.sampleRate = context.sampleRate;
  }

  /** Takes the next piece. Returns seconds from now until it sounds. */
  add(samples, chunk, isLast) {
    const piece = { chunk, isLast, start: this.length, samples };
    this.pieces.push(piece);
    this.length += samples.length;
    this.#fill();
    const { at, from } = this.#scheduled.at(-1); // this piece, or one before it
    return (at + piece.start - from - this.#now()) / this.sampleRate;
  }

  /** The sample with which a chunk begins. */
  startOf(chunk) {
    return this.pieces.find((piece) => piece.chunk === chunk).start;
  }

  /** Plays on from this sample of the speech. */
  seek(sample) {
    const target = Math.min(Math.max(Math.round(sample), 0), Math.max(this.length - 1, 0));
    this.silence();
    const first = this.pieces.findIndex(({ start, samples }) => target < start + samples.length);
    if (first < 0) return; // nothing but empty pieces
    this.#upcoming = first + 1;
    this.#schedule(this.pieces[first], target - this.pieces[first].start);
    this.#fill();
    this.context.resume();
  }

  silence() {
    for (const source of this.#sources) {
      source.onended = null;
      source.stop();
    }
    this.#sources.clear();
    this.#scheduled = [];
    this.#next = null;
  }

  /** The chunk and sample of the speech being heard now; {chunk: -1} when nothing sounds. */
  position() {
    const now = this.#now();
    const playing = this.#scheduled.findLast((part) => part.at <= now);
    if (!playing) return { chunk: -1, sample: this.#scheduled[0]?.from ?? 0 };
    const sample = playing.from + Math.min(now - playing.at, playing.length);
    return { chunk: now < playing.at + playing.length ? playing.chunk : -1, sample };
  }

  get isSounding() {
    return this.#sources.size > 0;
  }

  #now() {
    return this.context.currentTime * this.sampleRate;
  }

  /** Schedules pieces until there is enough ahead, and always one behind the one that sounds. */
  #fill() {
    const isEnough = () =>
      this.#sources.size > 1 && this.#next - this.#now() >= this.aheadS * this.sampleRate;
    while (this.#upcoming < this.pieces.length && !isEnough()) {
      this.#schedule(this.pieces[this.#upcoming++], 0);
    }
  }

  #schedule({ chunk, isLast, start, samples }, skip) {
    const source = new AudioBufferSourceNode(this.context, { buffer: this.#buffer(samples) });
    source.connect(this.context.destination);
    source.onended = () => {
      this.#sources.delete(source);
      if (isLast) this.played.add(chunk);
      this.#fill();
    };
    const at = this.#place();
    source.start(at / this.sampleRate, skip / this.sampleRate);
    this.#sources.add(source);
    this.#scheduled.push({ chunk, at, from: start + skip, length: samples.length - skip });
    this.#next = at + samples.length - skip;
  }

  #buffer(samples) {
    const buffer = this.context.createBuffer(1, Math.max(samples.length, 1), this.sampleRate);
    const floats = buffer.getChannelData(0);
    for (let i = 0; i < samples.length; i++) floats[i] = samples[i] / 32768;
    return buffer;
  }

  #place() {
    const soonest = Math.ceil(this.#now() + LEAD_S * this.sampleRate);
    if (this.#next === null) return soonest;
    if (this.#next >= this.#now() + LATE_S * this.sampleRate) return this.#next;
    this.gaps += 1;
    this.gapSeconds += (soonest - this.#next) / this.sampleRate;
    return soonest;
  }
}
