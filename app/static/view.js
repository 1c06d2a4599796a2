// What is drawn again and again: the list of chunks with its lanes, and the waveform.

/** Creates an element: el("p", {className: "quiet"}, "text", child). */
export function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** "84 ms", "1.24 s", "2:05". */
export function time(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** Downloads a Blob, or what is at an address. */
export function saveAs(source, name) {
  const isBlob = source instanceof Blob;
  const href = isBlob ? URL.createObjectURL(source) : source;
  el("a", { href, download: name }).click();
  if (isBlob) setTimeout(() => URL.revokeObjectURL(href), 10_000); // the download must have begun
}

/** One row per chunk; bars show where its time went, the row being heard is marked. */
export class ChunkList {
  #rows = [];
  #current = -1;
  #madeScale = 0;
  #heardScale = 0;

  constructor(list, onPick) {
    this.list = list;
    this.onPick = onPick;
  }

  clear() {
    this.list.replaceChildren();
    this.#rows = [];
    this.#current = -1;
    this.#madeScale = this.#heardScale = 0;
  }

  /** chunk: index, text, batchSize, and milliseconds since the click: queue, infer, arrived, from, to. */
  add(chunk) {
    const { index } = chunk;
    const rest = Math.max(chunk.arrived - chunk.queue - chunk.infer, 0);
    const made = [
      bar("queue", 0, chunk.queue),
      bar("infer", chunk.queue, chunk.queue + chunk.infer),
      bar("rest", chunk.queue + chunk.infer, chunk.queue + chunk.infer + rest),
    ];
    const numbers = [
      `queue ${time(chunk.queue / 1000)}`, `model ${time(chunk.infer / 1000)}`,
      `rest ${time(rest / 1000)}`, `batch of ${chunk.batchSize}`,
      `plays at ${time(chunk.from / 1000)} for ${time((chunk.to - chunk.from) / 1000)}`,
    ].join(" · ");
    const [text, figures] = [`chunk-${index}`, `chunk-${index}-figures`];
    const button = el("button", { type: "button", className: "chunk" },
      el("span", { className: "chunk-text", id: text }, chunk.text),
      el("span", { className: "tracks", ariaHidden: "true" },
        el("span", { className: "track made" }, ...made),
        el("span", { className: "track heard" }, bar("play", chunk.from, chunk.to))),
      el("span", { className: "chunk-numbers quiet number", id: figures }, numbers));
    button.setAttribute("aria-labelledby", text);
    button.setAttribute("aria-describedby", figures);
    button.addEventListener("click", () => this.onPick(index));
    this.#rows[index] = button; // a chunk that was lost has no row
    this.list.append(el("li", {}, button));
    this.#rescale(chunk);
  }

  highlight(index) {
    const row = this.#rows[index];
    // A chunk that is heard before it is whole gets its row later.
    if (index === this.#current || (index >= 0 && !row)) return;
    this.#rows[this.#current]?.removeAttribute("aria-current");
    this.#current = index;
    if (!row) return;
    row.setAttribute("aria-current", "true");
    // Scrolls the list only: scrollIntoView would also move the page under the reader.
    const [box, item] = [this.list.getBoundingClientRect(), row.getBoundingClientRect()];
    if (item.top < box.top) this.list.scrollTop -= box.top - item.top;
    if (item.bottom > box.bottom) this.list.scrollTop += item.bottom - box.bottom;
  }

  // The bars hold milliseconds; only the two scales change when a later chunk arrives.
  #rescale(chunk) {
    this.#madeScale = Math.max(this.#madeScale, chunk.arrived, chunk.queue + chunk.infer);
    this.#heardScale = Math.max(this.#heardScale, chunk.to);
    this.list.style.setProperty("--made", this.#madeScale);
    this.list.style.setProperty("--heard", this.#heardScale);
  }
}

function bar(kind, from, to) {
  const element = el("span", { className: `bar ${kind}` });
  element.style.setProperty("--from", from);
  element.style.setProperty("--to", to);
  return element;
}

const BLOCK = 441; // samples behind one stored peak
const STEP = 4; // CSS pixels from bar to bar

/** The loudness of the whole speech, with a cursor; a click or the arrow keys move it. */
export class Waveform {
  #peaks = [];
  #bars = [];
  #cursor = 0; // 0…1
  #expected = 0; // blocks the full width stands for

  constructor(canvas, onSeek) {
    this.canvas = canvas;
    canvas.addEventListener("click", (event) => onSeek(this.#share(event.offsetX) * this.length));
    canvas.addEventListener("keydown", (event) => {
      const seconds = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2 }[event.key];
      const edge = { Home: 0, End: this.length }[event.key];
      if (seconds === undefined && edge === undefined) return;
      event.preventDefault();
      onSeek(edge ?? this.#cursor * this.length + seconds * this.sampleRate);
    });
    window.addEventListener("resize", () => this.#layOut());
  }

  clear(sampleRate) {
    Object.assign(this, { length: 0, sampleRate });
    this.#peaks = [];
    this.#cursor = this.#expected = 0;
    this.#layOut();
  }

  /** share: which part of the whole text has arrived, so that the rest of the width stays free. */
  add(samples, share) {
    this.length += samples.length;
    for (let at = 0; at < samples.length; at += BLOCK) {
      let peak = 0;
      for (const sample of samples.subarray(at, at + BLOCK)) {
        peak = Math.max(peak, Math.abs(sample));
      }
      this.#peaks.push(peak / 32768);
    }
    this.#expected = this.#peaks.length / Math.min(share, 1);
    this.#layOut();
  }

  moveTo(sample, spoken) {
    this.#cursor = this.length ? sample / this.length : 0;
    this.canvas.setAttribute("aria-valuemax", (this.length / this.sampleRate).toFixed(1));
    this.canvas.setAttribute("aria-valuenow", (sample / this.sampleRate).toFixed(1));
    this.canvas.setAttribute("aria-valuetext", spoken);
    this.#draw();
  }

  #share(x) {
    const filled = this.#expected ? this.#peaks.length / this.#expected : 1;
    return Math.min(x / this.canvas.clientWidth / filled, 1);
  }

  #layOut() {
    const { canvas } = this;
    const ratio = window.devicePixelRatio;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const count = Math.floor(canvas.clientWidth / STEP);
    const blocks = this.#expected / count;
    this.#bars = Array.from({ length: count }, (_, i) => {
      const [from, to] = [Math.floor(i * blocks), Math.ceil((i + 1) * blocks)];
      return from < this.#peaks.length ? Math.max(0, ...this.#peaks.slice(from, to)) : null;
    });
    this.#draw();
  }

  #draw() {
    const { canvas } = this;
    const pen = canvas.getContext("2d");
    const { color, caretColor } = getComputedStyle(canvas); // still to come, already heard
    const { clientWidth: width, clientHeight: height } = canvas;
    const filled = this.#expected ? this.#peaks.length / this.#expected : 0;
    const cursor = this.#cursor * filled * width;
    pen.setTransform(window.devicePixelRatio, 0, 0, window.devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    this.#bars.forEach((peak, i) => {
      // The root lifts quiet passages, as the ear does.
      const tall = peak === null ? 2 : Math.max(Math.sqrt(peak) * height, 3);
      pen.globalAlpha = peak === null ? 0.35 : 1;
      pen.fillStyle = i * STEP < cursor ? caretColor : color;
      pen.fillRect(i * STEP, (height - tall) / 2, STEP - 1.5, tall);
    });
    pen.globalAlpha = 1;
    pen.fillStyle = caretColor;
    if (cursor) pen.fillRect(Math.min(cursor, width - 2), 0, 2, height);
  }
}
