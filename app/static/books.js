// A file that becomes an audiobook: chosen or dropped, its name shown, then sent with the settings.

import { Problem } from "./api.js";

const HAS_TITLES = /^#{1,6}[ \t]+\S/m; // chapters of a text
const IS_EPUB = /\.epub$/i;

export class BookChoice {
  /** send takes a form, gives the job; about tells of a job what its book is called.
   * settings are the fields to send; onProblem shows what went wrong, onChoice clears it. */
  constructor({ zone, drop, ...parts }) {
    Object.assign(this, parts);
    const { input, make } = this;
    this.mostBytes = Infinity;
    input.addEventListener("change", () => this.#show());
    make.addEventListener("click", () => this.#make());
    drop.addEventListener("click", () => {
      this.#forget();
      input.focus();
    });
    this.#takeDropped(zone);
  }

  // Anywhere on the page: a file dropped beside the zone would replace the page.
  #takeDropped(zone) {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    const light = (isOver) => zone.toggleAttribute("data-over", isOver);
    document.addEventListener("dragover", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      light(true);
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) light(false); // out of the window
    });
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      light(false);
      this.input.files = event.dataTransfer.files;
      this.#show();
      this.make.focus();
    });
  }

  #show() {
    const file = this.input.files[0];
    this.onChoice();
    this.chosen.hidden = !file;
    if (!file) return;
    this.name.textContent = `${file.name}, ${size(file.size)}`;
    this.status.textContent = `Chosen: ${this.name.textContent}`;
  }

  #forget() {
    this.input.value = "";
    this.status.textContent = "";
    this.#show();
  }

  async #make() {
    const file = this.input.files[0];
    const words = this.make.textContent;
    this.onChoice();
    this.make.disabled = true;
    this.status.textContent = this.make.textContent = "Sending…";
    try {
      const job = await this.send(await this.#form(file));
      this.#forget();
      this.status.textContent = `${file.name} is being spoken.`;
      this.status.textContent = told(file.name, await this.about(job));
    } catch (problem) {
      this.status.textContent = "";
      this.onProblem(ofTheFile(problem));
    } finally {
      this.make.textContent = words;
      this.make.disabled = false;
    }
  }

  async #form(file) {
    if (file.size > this.mostBytes) {
      // Said here: a server that refuses while it is being sent to is not always heard.
      const detail = `has ${size(file.size)}; at most ${size(this.mostBytes)} are taken`;
      throw new Problem({ title: "The file is too large", detail: `file: ${detail}`,
        errors: [{ field: "file", detail }] });
    }
    const fields = this.settings();
    delete fields.text;
    if (IS_EPUB.test(file.name)) delete fields.language; // it has one of its own
    else fields.chapters = HAS_TITLES.test(await file.text());
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("file", file);
    return form;
  }
}

/** What is wrong with the text is wrong with the file: the text box has nothing to do with it. */
function ofTheFile(problem) {
  for (const error of problem.errors ?? []) if (error.field === "text") error.field = "file";
  return problem;
}

function told(name, { title, author, chapters }) {
  const book = title ? `“${title}”${author ? ` by ${author}` : ""}` : name;
  const count = chapters.length === 1 ? "1 chapter" : `${chapters.length} chapters`;
  return chapters.length ? `${book} is being spoken, in ${count}.` : `${book} is being spoken.`;
}

function size(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
