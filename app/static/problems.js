// What went wrong, shown beside the field it is about or under the text box.

import { Problem } from "./api.js";

const $ = (id) => document.getElementById(id);
let countdown = 0;

export function showProblem(problem) {
  const shown = problem instanceof Problem
    ? problem
    : new Problem({ title: "Something went wrong on this page", detail: String(problem) });
  $("problem-title").textContent = shown.title;
  const where = shown.status === 401 ? " On this page, enter it in the field “API key”." : "";
  $("problem-detail").textContent = shown.detail + where;
  $("problem").hidden = false;
  const fields = shown.errors.filter(({ field }) => $(`error-${field}`));
  for (const { field, detail } of fields) {
    $(`error-${field}`).textContent = detail;
    $(`error-${field}`).hidden = false;
    $(field)?.setAttribute("aria-invalid", "true");
  }
  if (fields.length) $(fields[0].field)?.focus();
  if (shown.status === 401) {
    $("key-field").hidden = false;
    $("api-key").focus();
  }
  if (shown.retryAfter) countDown(shown.retryAfter);
}

export function clearProblem() {
  clearInterval(countdown);
  $("problem").hidden = $("retry").hidden = true;
  for (const message of document.querySelectorAll(".field-error")) {
    message.hidden = true;
    message.textContent = ""; // fields are described by it, hidden or not
  }
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
  }
}

function countDown(seconds) {
  const end = performance.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    $("retry-text").textContent = left > 0
      ? `The server asks to wait ${left} s before the next try.`
      : "Ready for another try.";
    if (left <= 0) clearInterval(countdown);
  };
  clearInterval(countdown);
  countdown = setInterval(tick, 250);
  tick();
  $("retry").hidden = false;
}
