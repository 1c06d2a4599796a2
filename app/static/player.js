// The page itself: settings, Speak and Stop, what is shown while speech runs. The parts it joins:
// speech.js (one request and its sound), view.js (chunks, waveform), voices.js, jobs.js, books.js
// (files that become audiobooks), texts.js, problems.js, api.js.

import { apiKey, request } from "./api.js";
import { BookChoice } from "./books.js";
import { Jobs } from "./jobs.js";
import { clearProblem, showProblem } from "./problems.js";
import { audioContext, Speech } from "./speech.js";
import { local } from "./storage.js";
import { SAMPLES, SNIPPETS, translateSample } from "./texts.js";
import { ChunkList, el, saveAs, time, Waveform } from "./view.js";
import { VoiceChoice } from "./voices.js";

const $ = (id) => document.getElementById(id);
const SLIDERS = { steps: "", speed: "×", pause_s: " s" }; // name: unit
const HAS_TITLES = /^#{1,6}[ \t]+\S/m; // chapters of a file
const SETTINGS_KEY = "supertonic.settings";

let server = { defaults: {}, limits: {}, model: null };
let speech = null;

const chunkList = new ChunkList($("chunks"), (index) => {
  seek(speech.playback.startOf(index));
});
const waveform = new Waveform($("waveform"), seek);
const voiceChoice = new VoiceChoice({
  voices: $("voices"), other: $("mix-with"), share: $("mix-share"),
  shareField: $("mix-share-field"), shareValue: $("mix-share-value"),
});
const jobs = new Jobs({
  list: $("jobs"), empty: $("jobs-empty"), status: $("jobs-status"), onProblem: showProblem,
});

const bookChoice = new BookChoice({
  input: $("file"), zone: $("book-zone"), chosen: $("book-chosen"), name: $("book-name"),
  make: $("book-make"), drop: $("book-drop"), status: $("book-status"), settings: readSettings,
  send: (form) => jobs.submitFile(form), about: (job) => jobs.book(job),
  onProblem: showProblem, onChoice: clearProblem,
});

// What tests and the curious may read.
window.supertonic = {
  get state() { return speech?.state ?? "idle"; },
  get jobId() { return speech?.jobId ?? null; },
  get currentTime() { return speech?.playback?.context.currentTime ?? 0; },
  get firstAudioMs() { return speech?.firstAudioMs ?? null; },
  get firstSoundMs() { return speech?.firstSoundMs ?? null; },
  get chunksTotal() { return speech?.total ?? 0; },
  get chunksReceived() { return speech?.chunks.length ?? 0; },
  get chunksPlayed() { return speech?.playback?.played.size ?? 0; },
  get gaps() { return speech?.playback?.gaps ?? 0; },
  get gapMs() { return (speech?.playback?.gapSeconds ?? 0) * 1000; },
  get scheduledSeconds() {
    return speech?.playback ? speech.playback.length / speech.playback.sampleRate : 0;
  },
  get playedSeconds() {
    return speech?.playback ? speech.playback.position().sample / speech.playback.sampleRate : 0;
  },
};

// ---- Settings

/** The request body the settings stand for. */
function readSettings() {
  const body = { text: $("text").value, voice: voiceChoice.value, language: $("language").value };
  for (const name in SLIDERS) body[name] = Number($(name).value);
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  return body;
}

function writeSettings(settings) {
  for (const name of ["text", "language", "seed", ...Object.keys(SLIDERS)]) {
    if (settings[name] !== undefined) $(name).value = settings[name];
  }
  if (settings.voice) voiceChoice.value = settings.voice;
  settingsChanged();
}

function settingsChanged() {
  voiceChoice.show();
  const body = readSettings();
  for (const name in SLIDERS) $(`${name}-value`).value = `${body[name]}${SLIDERS[name]}`;
  const length = [...body.text].length;
  const limit = server.limits.text_chars;
  const ofLimit = limit ? ` / ${limit.toLocaleString()}` : "";
  $("count").textContent = `${length.toLocaleString()}${ofLimit} characters`;
  $("count").classList.toggle("too-long", length > limit);
  const kind = document.querySelector("input[name=snippet]:checked").value;
  const wav = { ...body, output_format: "wav" };
  $("snippet").textContent = SNIPPETS[kind](location.origin, wav, Boolean(apiKey.get()));
  local.set(SETTINGS_KEY, JSON.stringify(body));
}

function savedSettings() {
  try {
    return JSON.parse(local.get(SETTINGS_KEY)) ?? {};
  } catch {
    return {}; // left by another version of the page
  }
}

async function loadServer() {
  server = await (await request("/voices")).json();
  for (const [name, { min, max }] of Object.entries(server.limits)) {
    if ($(name) && min !== undefined) Object.assign($(name), { min, max });
  }
  bookChoice.mostBytes = server.limits.file_bytes;
  voiceChoice.fill(server.voices);
  const languages = server.languages.map(({ code, name }) => new Option(name, code));
  $("language").replaceChildren(...languages);
  showModel(server.model);
  const settings = { ...server.defaults, ...savedSettings() };
  settings.text ||= SAMPLES[settings.language]?.Greeting;
  writeSettings(settings);
  showSamples();
}

function showSamples() {
  const samples = Object.entries(SAMPLES[$("language").value] ?? {});
  const buttons = samples.map(([name, text]) => {
    const button = el("button", { type: "button", className: "plain", lang: "en" }, name);
    button.addEventListener("click", () => writeSettings({ text }));
    return button;
  });
  $("samples").replaceChildren(el("span", { className: "quiet" }, "Try"), ...buttons);
  $("text").lang = $("language").value;
}

function showModel(model) {
  $("builtin-notice").hidden = !model?.is_builtin;
  const rate = model && `${(model.sample_rate / 1000).toLocaleString()} kHz`;
  $("model").textContent = model
    ? `Speaking: ${model.name}${model.is_builtin ? ", the built-in voice" : ""} · ${rate}`
    : "No worker has said yet which model speaks.";
}

// ---- Speech

async function speak() {
  stop();
  clearProblem();
  const mine = new Speech(readSettings(), (event) => mine === speech && showEvent(event));
  speech = mine;
  const running = mine.run();
  const { sampleRate } = openSound();
  chunkList.clear();
  waveform.clear(sampleRate);
  $("result").hidden = false;
  $("warnings").hidden = true;
  showNumbers();
  requestAnimationFrame(follow);
  try {
    await running;
  } catch (problem) {
    if (mine === speech) showProblem(problem);
  }
  if (mine !== speech) return;
  showNumbers();
  $("result").hidden = mine.chunks.length === 0;
}

/** Browsers let sound start only from a user's own action, so this is called from one. */
function openSound() {
  return audioContext(server.model?.sample_rate ?? 44100);
}

function stop() {
  speech?.stop();
  pauseFiles();
}

/** One sound at a time: the files of jobs stop for the speech, and all but the one just begun. */
function pauseFiles(begun = null) {
  for (const audio of $("jobs").querySelectorAll("audio")) if (audio !== begun) audio.pause();
}

function showEvent(event) {
  if (event === "accepted") {
    $("seed-last").textContent = `Last used: ${speech.seed}`;
    $("seed-used").hidden = false;
    waveform.clear(speech.playback.sampleRate);
  }
  if (event === "accepted" || event === "gap") {
    $("warnings").replaceChildren(...speech.warnings.map((text) => el("li", {}, String(text))));
    $("warnings").hidden = speech.warnings.length === 0;
  }
  if (event === "chunk") {
    const { chunk, isLast, samples } = speech.playback.pieces.at(-1);
    if (isLast) chunkList.add(speech.chunks.at(-1));
    waveform.add(samples, (chunk + 1) / speech.total);
  }
  showNumbers();
}

function showNumbers() {
  const { firstAudioMs, firstSoundMs, madeMs, chunks, total, playback } = speech;
  const show = (id, text) => ($(id).textContent = text);
  const seconds = playback ? playback.length / playback.sampleRate : 0;
  show("first-audio", firstAudioMs === null ? "–" : time(firstAudioMs / 1000));
  show("first-sound", firstSoundMs === null ? "" : `sound at ${time(firstSoundMs / 1000)}`);
  show("total-time", madeMs === null ? "–" : time(madeMs / 1000));
  show("made-chunks", total ? `${chunks.length} of ${total} chunks` : "");
  show("audio-seconds", seconds ? time(seconds) : "–");
  show("rtf", seconds ? (madeMs / 1000 / seconds).toFixed(3) : "–");
  show("rtf-words", seconds ? `${Math.round(seconds / (madeMs / 1000))}× real time` : "");
  show("made-scale", madeMs === null ? "" : `0 – ${time(madeMs / 1000)}`);
  show("heard-scale", chunks.length ? `0 – ${time(chunks.at(-1).to / 1000)}` : "");
  show("gaps", playback?.gaps ?? 0);
  show("gap-ms", playback?.gaps ? `${time(playback.gapSeconds)} of silence` : "none so far");
  $("download").disabled = speech.isReceiving || !chunks.length;
}

/** Runs once per frame for as long as something is received or heard. */
function follow() {
  const { playback, state } = speech;
  if (playback) showPosition(playback);
  showState(state);
  if (speech.isReceiving || playback?.isSounding) requestAnimationFrame(follow);
}

function showPosition(playback) {
  const { chunk, sample } = playback.position();
  const [at, whole] = [sample, playback.length].map((n) => (n / playback.sampleRate).toFixed(1));
  chunkList.highlight(chunk);
  waveform.moveTo(sample, `${at} of ${whole} seconds`);
  $("clock").textContent = `${at} / ${whole} s`;
  $("played").textContent = `heard ${playback.played.size} of ${speech.total}`;
}

const STATE_WORDS = {
  waiting: "Waiting for sound…", playing: "Playing", paused: "Paused", finished: "Finished",
  stopped: "Stopped", cancelled: "Cancelled by the server", failed: "Failed",
};

function showState(state) {
  const words = speech.isReconnecting ? "Reconnecting…" : STATE_WORDS[state];
  if (document.documentElement.dataset.state === state && $("phase").textContent === words) return;
  document.documentElement.dataset.state = state;
  $("phase").textContent = $("status").textContent = words;
  $("stop").disabled = !["waiting", "playing", "paused"].includes(state);
  $("toggle-words").textContent = { playing: "Pause", paused: "Resume" }[state] ?? "Play again";
  $("toggle-play").disabled = !speech.playback?.pieces.length;
}

function seek(sample) {
  if (!speech?.playback?.pieces.length) return;
  pauseFiles();
  speech.playback.seek(sample);
  requestAnimationFrame(follow);
}

async function togglePlay() {
  const { context } = speech.playback;
  if (speech.state === "playing") await context.suspend();
  else if (speech.state === "paused") {
    pauseFiles();
    await context.resume();
  } else seek(0);
}

// ---- The rest of the page

async function watchWorker() {
  if (!document.hidden) {
    const answer = await fetch("/readyz").catch(() => null);
    const state = answer?.ok ? "ready" : answer ? "absent" : "away";
    const words = { ready: "Worker ready", absent: "No worker", away: "Server away" }[state];
    if ($("worker").dataset.state !== state) {
      $("worker").dataset.state = state;
      $("worker").textContent = words;
    }
    if (state === "ready" && !server.model) await loadServer().catch(showProblem);
  }
  setTimeout(watchWorker, 5000);
}

async function submitJob() {
  clearProblem();
  try {
    const settings = readSettings();
    await jobs.submit({ ...settings, chapters: HAS_TITLES.test(settings.text) });
    $("jobs").firstElementChild?.scrollIntoView({ block: "nearest" });
  } catch (problem) {
    showProblem(problem);
  }
}

async function copySnippet() {
  await navigator.clipboard.writeText($("snippet").textContent);
  $("copy").textContent = $("status").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    if (!event.shiftKey) speak();
    else if (!event.repeat) $("toggle-play").click(); // which may be disabled
  } else if (event.key === "Escape") stop();
}

function onClick(id, act) {
  $(id).addEventListener("click", act);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  speak();
});
document.addEventListener("keydown", onKey);
window.addEventListener("pagehide", stop);
// Opening the sound device takes a while; the first touch of the page comes before the first Speak.
document.addEventListener("pointerdown", openSound, { once: true });
document.addEventListener("keydown", openSound, { once: true });
document.addEventListener("input", settingsChanged);
$("language").addEventListener("change", () => {
  const text = translateSample($("text").value, $("language").value);
  if (text) writeSettings({ text });
  showSamples();
});
$("api-key").value = apiKey.get();
$("key-field").hidden = !apiKey.get();
$("api-key").addEventListener("change", () => {
  apiKey.set($("api-key").value);
  settingsChanged();
  clearProblem();
  jobs.refresh();
});
$("key-field").addEventListener("submit", (event) => event.preventDefault());
// Media events do not bubble, so they are caught on their way down.
$("jobs").addEventListener("play", (event) => {
  if (speech?.state !== "paused") speech?.stop();
  pauseFiles(event.target);
}, true);
onClick("stop", stop);
onClick("toggle-play", togglePlay);
onClick("retry-now", speak);
onClick("submit-job", submitJob);
onClick("copy", copySnippet);
onClick("reset", () => writeSettings({ ...server.defaults, seed: "" }));
onClick("seed-reuse", () => writeSettings({ seed: speech.seed }));
onClick("download", () => saveAs(speech.wav(), `supertonic-${speech.seed}.wav`));

await loadServer().catch(showProblem);
jobs.refresh();
watchWorker();
