// Which voice speaks: one of the server's, or two of them mixed.

import { el } from "./view.js";

const TITLES = { male: "Male", female: "Female" };
// As this page writes a mixture, and as plain as others may: M1(60)+F2(40), M1+F2.
const MIXTURE = /^([^+()]+)(?:\((\d+)\))?\+([^+()]+)(?:\((\d+)\))?$/;

export class VoiceChoice {
  /** Elements: where the voices go, the list of those to mix in, and how much of it. */
  constructor({ voices, other, share, shareField, shareValue }) {
    Object.assign(this, { voices, other, share, shareField, shareValue });
  }

  fill(voices) {
    const genders = new Set(voices.map(({ gender }) => gender));
    this.voices.replaceChildren(...[...genders].map((gender) => group(voices, gender)));
    const options = voices.map(({ id, name }) => new Option(name, id));
    this.other.replaceChildren(new Option("no other voice", ""), ...options);
  }

  get value() {
    const voice = this.voices.querySelector("input:checked")?.value;
    const [other, share] = [this.other.value, Number(this.share.value)];
    return voice && other && other !== voice ? `${voice}(${100 - share})+${other}(${share})` : voice;
  }

  set value(voice) {
    const [, first, ofFirst = 1, other, ofOther = 1] = MIXTURE.exec(voice) ?? [];
    const input = document.getElementById(`voice-${first ?? voice}`);
    if (input) input.checked = true;
    this.other.value = [...this.other.options].some(({ value }) => value === other) ? other : "";
    if (other) this.share.value = (100 * ofOther) / (Number(ofFirst) + Number(ofOther));
    this.show();
  }

  show() {
    this.shareField.hidden = !this.other.value;
    this.shareValue.value = `${this.share.value} %`;
  }
}

function group(voices, gender) {
  const cards = voices.filter((voice) => voice.gender === gender).map(({ id, name }) => {
    const input = el("input", { type: "radio", name: "voice", value: id, id: `voice-${id}` });
    return el("label", { className: "voice" }, input, el("span", {}, name));
  });
  const title = TITLES[gender] ?? "Other";
  return el("div", { className: "voice-group", role: "group", ariaLabel: title },
    el("span", { className: "quiet", ariaHidden: "true" }, title), ...cards);
}
