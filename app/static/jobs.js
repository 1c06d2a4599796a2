// Long jobs: submitted here, made on the server, listed until they are gone. The server keeps
// them, so a reload shows the same list. It is asked again only while something runs.

import { apiKey, request } from "./api.js";
import { el, saveAs, time } from "./view.js";

const POLL_MS = 1000;
const RUNNING = new Set(["queued", "running"]);
const OPEN = new Set([...RUNNING, "paused"]); // not at an end yet

export class Jobs {
  #rows = new Map(); // job_id -> {item, parts, state, soFar}
  #timer = 0;

  /** onProblem shows an error that belongs to no field. */
  constructor({ list, empty, status, onProblem }) {
    Object.assign(this, { list, empty, status, onProblem });
  }

  submit(body) {
    return this.#submit({ json: body });
  }

  /** A form with a file and the other fields. */
  submitFile(form) {
    return this.#submit({ method: "POST", body: form });
  }

  async #submit(options) {
    const job = await (await request("/synthesize/long", options)).json();
    this.status.textContent = "Job accepted";
    await this.refresh();
    return job;
  }

  /** {title, author, chapters} */
  async book(job) {
    return (await request(job.links.chapters)).json();
  }

  async refresh() {
    clearTimeout(this.#timer);
    let jobs;
    try {
      ({ jobs } = await (await request("/jobs?limit=20")).json());
    } catch (problem) {
      if (problem.status === 401) return this.onProblem(problem); // asked again once there is a key
      // The worker line already says that the server is away; here it is enough to ask again.
      this.#timer = setTimeout(() => this.refresh(), 5 * POLL_MS);
      return;
    }
    const long = jobs.filter((job) => job.kind === "long");
    this.#show(long);
    clearTimeout(this.#timer); // two refreshes may have overlapped
    if (long.some((job) => RUNNING.has(job.state))) {
      this.#timer = setTimeout(() => this.refresh(), POLL_MS);
    }
  }

  // Rows are kept and updated: drawing them anew would stop a playing file and lose the focus.
  #show(jobs) {
    const ids = new Set(jobs.map((job) => job.job_id));
    for (const [id, { item, parts }] of this.#rows) {
      if (ids.has(id)) continue;
      release(parts.player);
      item.remove();
      this.#rows.delete(id);
    }
    jobs.forEach((job, i) => {
      if (!this.#rows.has(job.job_id)) this.#rows.set(job.job_id, this.#newRow(job));
      const { item } = this.#rows.get(job.job_id);
      const there = this.list.children[i] ?? null;
      if (there !== item) this.list.insertBefore(item, there);
      this.#update(this.#rows.get(job.job_id), job);
    });
    this.empty.hidden = jobs.length > 0;
  }

  #newRow(job) {
    const parts = {
      state: el("span", { className: "pill" }),
      bar: el("progress", { max: 1, ariaLabel: "Progress" }),
      facts: el("p", { className: "quiet number" }),
      actions: el("div", { className: "row actions" }),
      player: el("div", { className: "listen" }),
    };
    const item = el("li", { className: "job" },
      el("div", { className: "row" },
        el("span", { className: "job-text" }, preview(job)), parts.state),
      parts.bar, parts.facts, parts.actions, parts.player);
    item.dataset.job = job.job_id;
    return { item, parts, state: null, soFar: null };
  }

  #update(row, job) {
    const { parts, item } = row;
    parts.bar.value = job.progress;
    parts.bar.hidden = !OPEN.has(job.state);
    parts.facts.textContent = facts(job);
    if (row.soFar) row.soFar.hidden = !job.chunks_done;
    if (row.state === job.state) return;
    if (row.state && !RUNNING.has(job.state)) this.status.textContent = `Job ${job.state}`;
    row.state = item.dataset.state = parts.state.dataset.state = job.state;
    parts.state.textContent = job.state;
    this.#showActions(row, job);
  }

  #showActions(row, job) {
    const { actions, player } = row.parts;
    const name = `“${preview(job, 40)}”`;
    const button = (text, act) => {
      const made = el("button", { type: "button", ariaLabel: `${text} ${name}` }, text);
      made.addEventListener("click", () => act(made).catch(this.onProblem));
      return made;
    };
    const save = (query, kind, link = job.links.audio) => async () =>
      saveAs(await this.#source(link + query), `${job.job_id}.${kind}`);
    row.soFar = null;
    if (OPEN.has(job.state)) {
      // Its button is replaced by its opposite: whoever pressed it finds the focus there again.
      const hadFocus = actions.contains(document.activeElement);
      const hold = job.state === "paused" ? "resume" : "pause";
      const holding = button(hold === "pause" ? "Pause" : "Resume", () => this.#hold(job, hold));
      row.soFar = button("Download so far", save("?partial=true", "wav"));
      row.soFar.hidden = !job.chunks_done;
      actions.replaceChildren(holding, row.soFar, button("Cancel", () => this.#delete(job)));
      if (hadFocus) holding.focus();
      return;
    }
    const remove = button("Remove", () => this.#delete(job));
    if (job.state !== "done") return actions.replaceChildren(remove);
    actions.replaceChildren(
      button("Listen", () => this.#listen(job, player, name)),
      button("Download WAV", save("", "wav")),
      button("Download MP3", save("?format=mp3", "mp3")),
      button("Download M4B", (pressed) => this.#saveBook(job, pressed)),
      button("Captions", save("?format=srt", "srt", job.links.captions)),
      remove,
    );
  }

  async #hold(job, action) {
    await request(`${job.links.self}/${action}`, { method: "POST" });
    await this.refresh();
  }

  // The server cancels a job that runs and forgets one that has ended.
  async #delete(job) {
    await request(job.links.self, { method: "DELETE" });
    await this.refresh();
  }

  // Links and audio elements fetch large files piece by piece, but they cannot send a key.
  async #source(address) {
    if (!apiKey.get()) return address;
    return (await request(address)).blob();
  }

  // It is made when first asked for, an hour of sound in less than a minute.
  async #saveBook(job, pressed) {
    const name = pressed.textContent;
    pressed.disabled = true;
    pressed.textContent = "Making M4B…";
    try {
      while (!(await this.#bookIsMade(job)));
      saveAs(await this.#source(job.links.book), `${job.job_id}.m4b`);
    } finally {
      pressed.textContent = name;
      pressed.disabled = false;
    }
  }

  async #bookIsMade(job) {
    try {
      await request(job.links.book, { headers: { Range: "bytes=0-0" } });
      return true;
    } catch (problem) {
      const isBeingMade = problem.detail.startsWith("The book is being made");
      if (problem.status !== 503 || !isBeingMade) throw problem;
      this.status.textContent = problem.detail;
      await new Promise((resolve) => setTimeout(resolve, 1000 * problem.retryAfter));
      return false;
    }
  }

  async #listen(job, player, name) {
    const source = await this.#source(job.links.audio);
    const src = source instanceof Blob ? URL.createObjectURL(source) : source;
    release(player);
    const audio = el("audio", { controls: true, src, ariaLabel: name });
    player.replaceChildren(audio);
    await audio.play();
  }
}

/** Gives back the file behind a player that goes; an address is none and stays as it is. */
function release(player) {
  URL.revokeObjectURL(player.firstElementChild?.src ?? "");
}

function preview({ text_preview: text, characters }, length = text.length) {
  const shown = text.slice(0, length).replace(/[\s…]+$/, "");
  return shown.length < characters ? `${shown}…` : shown;
}

function facts(job) {
  const parts = [`${job.voice}, ${job.language}`, `${job.characters.toLocaleString()} characters`];
  if (job.queue_position > 1) parts.push(`${job.queue_position - 1} before it`);
  if (OPEN.has(job.state)) parts.push(`${job.chunks_done} of ${job.chunks_total} chunks`);
  if (job.eta_seconds) parts.push(`${time(job.eta_seconds)} left`);
  if (job.duration_seconds) parts.push(`${time(job.duration_seconds)} of audio`);
  if (job.finished_at && job.started_at && job.state === "done") {
    parts.push(`made in ${time(job.finished_at - job.started_at)}`);
  }
  if (job.error) parts.push(job.error);
  return parts.join(" · ");
}
