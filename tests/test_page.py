"""The page in a real Chromium against the running server: it plays, stops, explains and lists.

Sound is judged by the browser's own audio clock, which also runs on machines without a loudspeaker.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
import soundfile
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.ebooks import epub3, packed
from tests.stack import Stack, wait_for

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
DRIVER = shutil.which("chromedriver") or "/usr/bin/chromedriver"
TWO_CHUNKS = (
    "The lighthouse keeper climbed the stairs and lit the lamp before the fog came in. "
    "On the tenth day a small boat drifted out of the mist, and nobody was rowing it."
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if not (Path(CHROMIUM).exists() and Path(DRIVER).exists()):
        message = "chromium and chromedriver are not installed (Debian: chromium, chromium-driver)"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1280,1000",
    ):  # fmt: skip
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The opened page: find things, set things, wait for things."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(f"{url}/ui")
        driver.execute_script("localStorage.clear()")
        driver.get_log("browser")
        self.open(url)

    def open(self, url: str) -> None:
        self.driver.get(f"{url}/ui")
        self.wait("document.querySelectorAll('#voices input').length === 10")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def script(self, code: str, *args: object) -> Any:
        return self.driver.execute_script(code, *args)

    def press(self, selector: str) -> None:
        """Click where the layout still moves under the pointer."""
        self.script("document.querySelector(arguments[0]).click()", selector)

    def wait(self, condition: str, limit_s: float = 30) -> None:
        until = WebDriverWait(self.driver, limit_s, poll_frequency=0.05)
        until.until(lambda _: self.script(f"return {condition}"), f"never true: {condition}")

    def set(self, **values: object) -> None:
        for name, value in values.items():
            self.script(
                "const [id, value] = arguments; const field = document.getElementById(id);"
                "field.value = value; field.dispatchEvent(new Event('input', {bubbles: true}));",
                name, value,
            )  # fmt: skip

    def submit(self, server: Stack) -> str:
        """Ask for a long job; its id, once it is the first of those that are listed."""
        known = [job["job_id"] for job in server.get("/jobs").json()["jobs"]]
        first = "document.querySelector('#jobs li')?.dataset.job"
        self.find("#submit-job").click()
        self.wait(f"{first} && !{json.dumps(known)}.includes({first})", limit_s=60)
        return str(self.script(f"return {first}"))

    @property
    def speech(self) -> dict[str, Any]:
        return self.script("return JSON.parse(JSON.stringify(window.supertonic))")

    def spoken(self, selector: str) -> tuple[str, str]:
        """An element's accessible name and description, as the browser computes them."""
        cdp = self.driver.execute_cdp_cmd
        root = cdp("DOM.getDocument", {})["root"]["nodeId"]
        node = cdp("DOM.querySelector", {"nodeId": root, "selector": selector})
        only = {**node, "fetchRelatives": False}
        (found,) = cdp("Accessibility.getPartialAXTree", only)["nodes"]
        return found["name"]["value"].strip(), found.get("description", {}).get("value", "")

    def console_errors(self) -> list[str]:
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser: webdriver.Chrome, server: Any) -> Page:
    return Page(browser, server.url)


def downloaded(file: Path, content: bytes) -> None:
    """Wait until the browser has written all of it: it may write into the file as it comes."""
    wait_for(lambda: file.read_bytes() == content, 20, f"{file.name} holds what was asked for")


def test_speak_plays_every_chunk_without_a_gap(page: Page, tmp_path: Path) -> None:
    page.set(text=TWO_CHUNKS, speed=2, pause_s=0.1, seed=21)
    page.find("#speak").click()
    page.wait("supertonic.chunksTotal >= 2 && supertonic.chunksReceived === supertonic.chunksTotal")
    first = page.speech["jobId"]
    page.press("#stop")
    # The second time the server has it all: a gap would be the page's own.
    page.find("#speak").click()
    page.wait(f"supertonic.jobId && supertonic.jobId !== '{first}'")
    page.wait("['playing', 'finished'].includes(supertonic.state)")
    clock = page.speech["currentTime"]
    page.wait(f"supertonic.currentTime > {clock} + 0.5")
    page.wait("supertonic.state === 'finished'", limit_s=60)
    speech = page.speech
    page.driver.save_screenshot(str(tmp_path / "page.png"))
    assert speech["chunksPlayed"] == speech["chunksReceived"] == speech["chunksTotal"] >= 2
    assert speech["gaps"] == 0
    assert speech["playedSeconds"] == pytest.approx(speech["scheduledSeconds"])
    assert speech["currentTime"] >= speech["scheduledSeconds"] > 1
    assert page.find("#first-audio").text.endswith((" ms", " s"))
    assert page.console_errors() == []


def test_a_chunk_can_be_heard_again_and_read_along(page: Page) -> None:
    page.set(text=TWO_CHUNKS, speed=0.8)
    page.find("#speak").click()
    page.wait("supertonic.chunksTotal >= 2 && supertonic.chunksReceived === supertonic.chunksTotal")
    page.find("#chunks li:last-child button").click()
    page.wait("document.querySelector('#chunks li:last-child [aria-current=true]') !== null")
    assert page.speech["playedSeconds"] > page.speech["scheduledSeconds"] / 4
    page.wait("supertonic.state === 'finished'")
    assert page.speech["gaps"] == 0


def test_the_downloaded_file_holds_exactly_the_samples_that_were_played(page: Page) -> None:
    joined = page.driver.execute_async_script("""
        const done = arguments[0];
        const { decodeWav, encodeWav } = await import("/static/audio.js");
        const pieces = [new Int16Array([1, -2, 32767]), new Int16Array([-32768, 5])];
        const bytes = new Uint8Array(await encodeWav(pieces, 44100).arrayBuffer());
        const { sampleRate, samples } = decodeWav(btoa(String.fromCharCode(...bytes)));
        done([sampleRate, ...samples]);
    """)
    assert joined == [44100, 1, -2, 32767, -32768, 5]


def test_only_what_is_heard_soon_is_scheduled_and_without_a_gap(page: Page) -> None:
    result = page.driver.execute_async_script("""
        const done = arguments[0];
        const starts = [];
        window.AudioBufferSourceNode = class extends AudioBufferSourceNode {
          start(at, skip) {
            starts.push(at);
            super.start(at, skip);
          }
        };
        const { Playback } = await import("/static/audio.js");
        const context = new AudioContext({ sampleRate: 24000 });
        const heard = async (playback) => {
          while (playback.isSounding) await new Promise((resolve) => setTimeout(resolve, 20));
          return { starts: starts.splice(0), played: playback.played.size, gaps: playback.gaps };
        };
        const playback = new Playback(context, 0.7);
        const sounds = [];
        for (let i = 0; i < 12; i++) sounds.push(playback.add(new Int16Array(6000), i, true));
        const scheduled = starts.length;
        const whole = { ...(await heard(playback)), scheduled, sounds };
        playback.played.clear();
        playback.seek(9 * 6000 + 3000);
        const sought = await heard(playback);
        const long = new Playback(context, 0.1); // less than a piece
        for (let i = 0; i < 4; i++) long.add(new Int16Array(12000), i, true);
        done({ whole, sought, long: await heard(long) });
    """)
    whole, sought, long = result["whole"], result["sought"], result["long"]
    assert whole["scheduled"] <= 4
    assert np.diff(whole["starts"]) == pytest.approx(np.full(11, 0.25))
    assert np.diff(whole["sounds"]) == pytest.approx(np.full(11, 0.25), abs=0.1)
    assert np.diff(sought["starts"]) == pytest.approx([0.125, 0.25])
    assert np.diff(long["starts"]) == pytest.approx([0.5, 0.5, 0.5])
    assert (whole["played"], sought["played"], long["played"]) == (12, 3, 4)
    assert [part["gaps"] for part in (whole, sought, long)] == [0, 0, 0]


def test_events_are_the_same_however_the_network_cuts_them(page: Page) -> None:
    answers = page.driver.execute_async_script(r"""
        const done = arguments[0];
        const { SseParser } = await import("/static/api.js");
        const stream = ": beat\r\n\r\nid: 7\r\nevent: chunk\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n"
          + "data:  two\n\nevent: done\rdata\r\r\n";
        const read = (pieces) => {
          const parser = new SseParser();
          return JSON.stringify(pieces.flatMap((piece) => parser.push(piece)));
        };
        const cuts = [...stream].map((_, i) => read([stream.slice(0, i), stream.slice(i)]));
        done([JSON.parse(read([stream])), new Set([...cuts, read([...stream])]).size]);
    """)
    assert answers == [
        [
            {"id": "7", "event": "chunk", "data": '{"a":\n1}'},
            {"id": "7", "event": "message", "data": " two"},
            {"id": "7", "event": "done", "data": ""},
        ],
        1,
    ]


def test_the_page_says_when_the_built_in_voice_speaks(page: Page, server: Any) -> None:
    model = requests.get(f"{server.url}/voices", timeout=10).json()["model"]
    page.wait("document.getElementById('worker').dataset.state === 'ready'")
    assert model["name"] in page.find("#model").text
    notice = page.find("#builtin-notice")
    assert notice.is_displayed() == model["is_builtin"]
    assert "make model" in notice.get_attribute("textContent")


def test_escape_stops_the_sound_and_cancels_the_job(page: Page, server: Any) -> None:
    page.set(text=TWO_CHUNKS * 60, steps=50)
    page.find("#text").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait("supertonic.chunksReceived >= 1")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait("supertonic.state === 'stopped'")
    job_url = f"{server.url}/jobs/{page.speech['jobId']}"
    WebDriverWait(None, 20, poll_frequency=0.1).until(
        lambda _: requests.get(job_url, timeout=10).json()["state"] == "cancelled"
    )
    assert page.speech["chunksReceived"] < page.speech["chunksTotal"]
    assert not page.find("#stop").is_enabled()


def test_leaving_the_page_cancels_the_job(page: Page, server: Any) -> None:
    page.set(text=TWO_CHUNKS * 60, steps=50)
    page.find("#speak").click()
    page.wait("supertonic.chunksReceived >= 1")
    job_url = f"{server.url}/jobs/{page.speech['jobId']}"
    page.driver.get("about:blank")
    wait_for(lambda: requests.get(job_url, timeout=10).json()["state"] == "cancelled", 20)


def test_a_stream_outlives_a_web_that_is_killed(
    browser: webdriver.Chrome, stack: Stack, tmp_path: Path
) -> None:
    stack.start_gated()
    text = f"{TWO_CHUNKS} This is the gate. {TWO_CHUNKS}"
    page = Page(browser, stack.url)
    page.set(text=text, seed=5)
    with stack.shut_gate():
        page.find("#speak").click()
        page.wait("supertonic.chunksReceived >= 2")
        stack.kill("web")
        page.wait("document.getElementById('phase').textContent === 'Reconnecting…'")
        page.wait("document.getElementById('status').textContent === 'Reconnecting…'")
        assert page.speech["chunksReceived"] < page.speech["chunksTotal"]
    stack.start_web()
    page.wait("supertonic.state === 'finished'", limit_s=60)
    assert page.speech["chunksPlayed"] == page.speech["chunksTotal"] > 2
    assert not page.find("#problem").is_displayed()
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    page.find("#download").click()
    file = tmp_path / "supertonic-5.wav"
    job = stack.get(f"/jobs/{page.speech['jobId']}").json()
    body = {name: job[name] for name in ("steps", "speed", "pause_s", "seed", "voice")}
    whole = stack.post("/synthesize", body | {"text": text, "output_format": "wav"})
    downloaded(file, whole.content)


# Connections that say what they are told: each request gets the next answer, events or a failure.
SCRIPTED = """
    window.asked = [];
    const { encodeWav } = await import("/static/audio.js");
    const { Speech } = await import("/static/speech.js");
    const { apiKey } = await import("/static/api.js");
    const wav = new Uint8Array(await encodeWav([new Int16Array(2400)], 24000).arrayBuffer());
    const chunk = { audio_base64: btoa(String.fromCharCode(...wav)), total: 2, text: "",
      batch_size: 1, queue_time_ms: 1, inference_time_ms: 1 };
    const say = (id, event, data) =>
      `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
    const accepted = say(0, "accepted", { job_id: "a1", total: 2, sample_rate: 24000, seed: 1 });
    const broken = (text) => () => new Response(new ReadableStream({
      start(stream) { stream.enqueue(new TextEncoder().encode(text)); },
      // What was not read yet is lost with an error, so it comes a little later.
      pull(stream) { setTimeout(() => stream.error(new TypeError("network error")), 50); },
    }), { headers: { "X-Job-Id": "a1" } });
    const refusal = (status) => () => new Response(status === 204 ? null : "{}", { status });
    const unreachable = () => { throw new TypeError("Failed to fetch"); };
    const run = async (...answers) => {
      window.fetch = async (path, { method = "GET", headers }) => {
        window.asked.push([method, path, headers["Last-Event-ID"] ?? null, headers.Authorization]);
        return (answers.shift() ?? refusal(404))();
      };
      apiKey.set("secret");
      const speech = new Speech({}, () => {});
      const problem = await speech.run().catch((error) => error);
      apiKey.set("");
      return { title: problem?.title ?? null, detail: problem?.detail, asked: window.asked,
        samples: speech.playback?.length ?? 0, chunks: speech.chunks.map(({ index }) => index),
        warnings: speech.warnings, state: speech.state };
    };
"""


def test_a_stream_broken_inside_a_chunk_goes_on_there_with_the_key(page: Page) -> None:
    result = page.driver.execute_async_script(f"""
        const done = arguments[0];
        {SCRIPTED}
        const slice = say("0+2400", "chunk", {{ ...chunk, index: 0, is_last_slice: false }});
        const rest = say(1, "chunk", {{ ...chunk, index: 0 }});
        const end = say(2, "chunk", {{ ...chunk, index: 1 }}) + say(3, "done", {{}});
        done(await run(broken(accepted + slice + rest.slice(0, 40)), unreachable, refusal(503),
          broken(rest), broken(end)));
    """)
    resumed = ["GET", "/jobs/a1/events"]
    assert result["asked"] == [
        ["POST", "/synthesize/stream", None, "Bearer secret"],
        *[[*resumed, "0+2400", "Bearer secret"]] * 3,
        [*resumed, "1", "Bearer secret"],
    ]
    assert (result["title"], result["samples"], result["chunks"]) == (None, 3 * 2400, [0, 1])


@pytest.mark.parametrize("status", [204, 404, 410])
def test_a_stream_whose_job_is_gone_broke_off(page: Page, status: int) -> None:
    result = page.driver.execute_async_script(f"""
        const done = arguments[0];
        {SCRIPTED}
        done(await run(broken(accepted), refusal({status})));
    """)
    assert result["title"] == "The stream broke off"
    assert result["detail"] == "the connection was closed before the last chunk"


def test_nobody_waits_longer_than_a_minute_for_a_server_that_is_away(page: Page) -> None:
    result = page.driver.execute_async_script(f"""
        const done = arguments[0];
        // A clock that stands still but for the pauses that somebody awaits, which take no time.
        const [wait, pauses] = [window.setTimeout, []];
        let now = 0;
        window.setTimeout = (then, ms) => {{
          if (!`${{then}}`.includes("[native code]")) return wait(then, ms);
          pauses.push(ms);
          return wait(() => {{ now += ms; then(); }});
        }};
        performance.now = () => now;
        {SCRIPTED}
        const result = await run(broken(accepted), ...Array(100).fill(unreachable));
        done({{ ...result, pauses, seconds: now / 1000 }});
    """)
    assert result["title"] == "The stream broke off"
    assert result["pauses"][:3] == [500, 750, 1125]
    assert 60 < result["seconds"] <= 65


def test_a_chunk_that_is_no_longer_kept_is_told_and_the_rest_is_played(page: Page) -> None:
    result = page.driver.execute_async_script(f"""
        const done = arguments[0];
        {SCRIPTED}
        const end = say(1, "gap", {{ index: 0, detail: "It is no longer kept." }})
          + say(2, "chunk", {{ ...chunk, index: 1 }}) + say(3, "done", {{}});
        done(await run(broken(accepted), broken(end)));
    """)
    assert result["warnings"] == ["Chunk 1: It is no longer kept."]
    assert (result["title"], result["chunks"]) == (None, [1])


def test_a_shortcut_pauses_and_resumes_while_one_types(page: Page) -> None:
    def press() -> None:
        page.find("#text").send_keys(Keys.CONTROL, Keys.SHIFT, Keys.ENTER)

    page.set(text=TWO_CHUNKS)
    press()
    assert page.speech["state"] == "idle", "there is nothing yet"
    page.find("#speak").click()
    page.wait("supertonic.state === 'playing'")
    job = page.speech["jobId"]
    press()
    page.wait("supertonic.state === 'paused'")
    page.wait("document.getElementById('toggle-words').textContent === 'Resume'")
    press()
    page.wait("supertonic.state === 'playing'")
    assert page.speech["jobId"] == job
    assert page.find("#text").get_attribute("value") == TWO_CHUNKS
    assert "Ctrl Shift Enter" in page.find("#toggle-play").text
    assert page.spoken("#toggle-play")[0] == "Pause"


def test_text_without_words_is_explained_beside_the_text_box(page: Page) -> None:
    page.set(text="🙂 🙂")
    page.find("#speak").click()
    page.wait("!document.getElementById('error-text').hidden")
    assert len(page.find("#error-text").text) > 10
    assert page.find("#text").get_attribute("aria-invalid") == "true"
    assert page.find("#problem-title").text
    page.set(text="Now there are words.")
    page.find("#speak").click()
    page.wait("supertonic.chunksReceived === 1")
    assert not page.find("#error-text").is_displayed()


def test_a_long_job_ends_in_a_file_that_survives_a_reload(
    page: Page, server: Any, tmp_path: Path
) -> None:
    page.set(text=f"# One\n{TWO_CHUNKS * 2}\n# Two\n{TWO_CHUNKS}", speed=2)
    job = page.submit(server)
    row = f'#jobs li[data-job="{job}"]'
    page.wait(f"document.querySelector('{row}').dataset.state === 'done'", limit_s=60)
    page.open(server.url)
    page.wait(f"document.querySelector('{row} .actions button')")
    page.find(f"{row} .actions button").click()
    page.wait(f"document.querySelector('{row} audio')?.duration > 1")
    page.wait(f"document.querySelector('{row} audio').currentTime > 0.2")
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    page.find(f"{row} [aria-label^='Download MP3']").click()
    downloaded(tmp_path / f"{job}.mp3", server.get(f"/jobs/{job}/audio?format=mp3").content)
    assert soundfile.info(tmp_path / f"{job}.mp3").duration > 1
    page.find(f"{row} [aria-label^='Captions']").click()
    downloaded(tmp_path / f"{job}.srt", server.get(f"/jobs/{job}/captions?format=srt").content)
    page.find(f"{row} [aria-label^='Download M4B']").click()
    downloaded(tmp_path / f"{job}.m4b", server.get(f"/jobs/{job}/book").content)
    with av.open(str(tmp_path / f"{job}.m4b")) as book:
        assert [chapter["metadata"]["title"] for chapter in book.chapters()] == ["One", "Two"]
    assert (tmp_path / f"{job}.srt").read_text("utf-8").startswith("1\n00:00:00,000 --> ")
    assert page.console_errors() == []


def test_the_sample_dialogue_is_spoken_turn_by_turn(page: Page, server: Any) -> None:
    page.press("#samples button:last-child")
    assert page.script("return document.getElementById('text').value").startswith("[voice F2]")
    page.find("#speak").click()
    page.wait("supertonic.state === 'finished'", limit_s=60)
    assert page.speech["chunksPlayed"] == 4
    assert not page.find("#problem").is_displayed()
    assert server.get(f"/jobs/{page.speech['jobId']}").json()["warnings"] == []


def test_files_that_were_fetched_with_a_key_are_given_back(page: Page, server: Any) -> None:
    page.script("sessionStorage.setItem('supertonic.key', 'a key')")
    try:
        page.open(server.url)
        page.script("""
            window.made = 0;
            window.kept = new Set();
            const { createObjectURL, revokeObjectURL } = URL;
            const later = window.setTimeout;
            URL.createObjectURL = (file) => {
              const url = createObjectURL(file);
              window.made += 1;
              window.kept.add(url);
              return url;
            };
            URL.revokeObjectURL = (url) => window.kept.delete(url) && revokeObjectURL(url);
            window.setTimeout = (then, ms) => later(then, Math.min(ms, 1000));
        """)
        page.set(text="Given back.")
        page.find("#submit-job").click()
        listen = "#jobs [aria-label^='Listen “Given back.']"
        page.wait(f'document.querySelector("{listen}")', limit_s=60)
        page.find(listen).click()
        page.wait("document.querySelector('#jobs audio')?.duration > 0.5")
        page.find(listen).click()
        kept = "[...kept].join() === document.querySelector('#jobs audio')?.src"
        page.wait(f"made === 2 && {kept}")
        page.find("#jobs [aria-label^='Download WAV “Given back.']").click()
        page.wait(f"made === 3 && {kept}")
        page.find("#jobs [aria-label^='Remove “Given back.']").click()
        page.wait("kept.size === 0")
        assert page.console_errors() == []
    finally:
        page.script("sessionStorage.clear()")


def test_one_sound_is_heard_at_a_time_and_escape_stops_it(page: Page) -> None:
    page.set(text="One sound at a time. " + TWO_CHUNKS * 3)
    page.find("#submit-job").click()
    listen = "#jobs [aria-label^='Listen “One sound']"
    page.wait(f'document.querySelector("{listen}")', limit_s=60)
    page.find("#speak").click()
    page.wait("supertonic.state === 'playing'")
    page.press(listen)
    page.wait("document.querySelector('#jobs audio')?.paused === false")
    page.wait("supertonic.state !== 'playing' && supertonic.state !== 'waiting'")

    page.press("#toggle-play")
    page.wait("supertonic.state === 'playing'")
    assert page.script("return document.querySelector('#jobs audio').paused")
    page.press("#toggle-play")
    page.wait("supertonic.state === 'paused'")
    page.script("document.querySelector('#jobs audio').play()")
    page.press("#toggle-play")
    page.wait("supertonic.state === 'playing'")
    assert page.script("return document.querySelector('#jobs audio').paused")

    page.script("document.querySelector('#jobs audio').play()")
    page.wait("supertonic.state !== 'playing'")
    page.find("#speak").click()
    page.wait("document.querySelector('#jobs audio').paused")
    page.script("document.querySelector('#jobs audio').play()")
    page.wait("document.querySelector('#jobs audio').paused === false")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait("document.querySelector('#jobs audio').paused")


def test_a_long_job_is_paused_and_resumed_from_the_page(page: Page, server: Any) -> None:
    # So many steps that it is not done before it is paused.
    page.set(text=TWO_CHUNKS * 60, speed=1, steps=50)
    job = page.submit(server)
    row = f'#jobs li[data-job="{job}"]'
    page.wait(f"document.querySelector('{row}').dataset.state === 'running'", limit_s=60)
    press = f"document.querySelector('{row} .actions button').click()"
    page.script(f"document.querySelector('{row} .actions button').focus()")
    page.script(press)
    page.wait(f"document.querySelector('{row}').dataset.state === 'paused'")
    state = requests.get(f"{server.url}/jobs/{job}", timeout=10).json()["state"]
    assert state == "paused"
    focused = page.script("return document.activeElement.textContent")
    assert focused == "Resume", "the focus is where it was"
    labels = f"[...document.querySelectorAll('{row} .actions button')].map(b => b.textContent)"
    page.wait(f"{labels}.join() === 'Resume,Download so far,Cancel'")
    assert "chunks" in page.find(f"{row} .quiet").text
    page.script(press)
    page.wait(f"document.querySelector('{row}').dataset.state === 'running'")
    requests.delete(f"{server.url}/jobs/{job}", timeout=10)
    page.wait(f"document.querySelector('{row}').dataset.state === 'cancelled'")
    assert page.console_errors() == []


def test_settings_are_remembered_and_appear_in_the_example_code(page: Page, server: Any) -> None:
    page.set(text="It's mine.", steps=7, seed=42)
    page.find("#voice-F3").click()
    page.open(server.url)
    assert page.find("#text").get_attribute("value") == "It's mine."
    page.find("input[value=python]").click()
    snippet = page.find("#snippet").text
    for part in (f"{server.url}/synthesize", '"F3"', '"steps": 7', '"seed": 42', "It's mine."):
        assert part in snippet


BLOCKED = """for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError"); } });
}"""
FULL = """Storage.prototype.setItem = () => {
  throw new DOMException("", "QuotaExceededError");
};"""


@pytest.mark.parametrize("storage", [BLOCKED, FULL], ids=["blocked", "full"])
def test_the_page_works_where_the_browser_keeps_nothing(
    page: Page, server: Any, storage: str
) -> None:
    cdp = page.driver.execute_cdp_cmd
    script = cdp("Page.addScriptToEvaluateOnNewDocument", {"source": storage})
    try:
        page.open(server.url)
        page.set(text="Nothing is kept.", **{"api-key": "a key"})
        page.script("document.getElementById('api-key').dispatchEvent(new Event('change'))")
        assert "Bearer KEY" in page.find("#snippet").text
        theme = page.find("#theme").text
        page.find("#theme").click()
        assert page.find("#theme").text != theme
        page.find("#speak").click()
        page.wait("supertonic.state === 'finished'")
        assert page.console_errors() == []
    finally:
        cdp("Page.removeScriptToEvaluateOnNewDocument", script)


def test_two_voices_are_mixed_and_remembered(page: Page, server: Any) -> None:
    page.find("#voice-F3").click()
    assert not page.find("#mix-share").is_displayed()
    page.set(**{"mix-with": "M2", "mix-share": 30, "text": "A mixture of two."})
    assert page.find("#mix-share").is_displayed()
    assert '"voice": "F3(70)+M2(30)"' in page.find("#snippet").text
    page.find("#speak").click()
    page.wait("supertonic.state === 'finished'")
    job = requests.get(f"{server.url}/jobs/{page.speech['jobId']}", timeout=10).json()
    assert job["voice"] == "F3(70)+M2(30)"
    page.open(server.url)
    page.wait("document.getElementById('mix-with').value === 'M2'")
    assert page.find("#voice-F3").is_selected()
    assert page.script("return document.getElementById('mix-share').value") == "30"
    page.find("#reset").click()
    assert not page.find("#mix-share").is_displayed()
    assert '"voice": "M1"' in page.find("#snippet").text


def test_a_server_with_keys_asks_for_one_and_its_examples_know(
    browser: webdriver.Chrome, stack: Stack
) -> None:
    stack.env["SUPERTONIC_API_KEYS"] = "the-key-of-this-test"
    stack.start_redis()
    stack.start_web()
    stack.start_worker(app="benchmarks.null_worker")
    stack.wait_ready()
    page = Page(browser, stack.url)
    page.set(text=TWO_CHUNKS)
    page.find("#speak").click()
    page.wait("document.activeElement.id === 'api-key'")
    assert "in the field “API key”" in page.find("#problem-detail").text
    assert "A key is needed" in page.find("#problem-detail").text
    page.find("#api-key").send_keys("another-key", Keys.ENTER)
    page.wait("document.getElementById('problem-detail').textContent.includes('none of this')")
    page.find("#api-key").clear()
    page.find("#api-key").send_keys("the-key-of-this-test", Keys.ENTER)
    page.open(stack.url)
    assert page.find("#api-key").get_attribute("value") == "the-key-of-this-test"
    assert page.find("#api-key").is_displayed(), "so that it can be changed or removed"
    page.find("#speak").click()
    page.wait("supertonic.chunksReceived >= 2")
    for kind in ("curl", "python", "javascript"):
        page.find(f"input[value={kind}]").click()
        snippet = page.find("#snippet").text
        assert "Bearer KEY" in snippet and "the-key-of-this-test" not in snippet


def test_screen_readers_hear_names_without_figures(page: Page) -> None:
    assert page.spoken("#speak") == ("Speak", "")
    assert page.spoken("#stop") == ("Stop", "")
    assert "Control+Enter" in page.find("#speak").get_attribute("aria-keyshortcuts")
    assert page.spoken("#seed") == ("Seed", "")
    page.set(text="🙂", seed="")
    page.find("#speak").click()
    page.wait("!document.getElementById('error-text').hidden")
    assert page.find("#error-text").text in page.spoken("#text")[1]
    page.set(text="A name and its figures.")
    page.find("#speak").click()
    page.wait("supertonic.chunksReceived === 1")
    name, description = page.spoken("#chunks button")
    assert name == "A name and its figures."
    assert description.startswith("queue ")
    assert page.spoken("#text")[1] == page.find("#count").text
    seed = page.find("#seed-last").text
    assert seed.startswith("Last used: ") and page.spoken("#seed") == ("Seed", seed)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_a_narrow_screen(page: Page, theme: str, tmp_path: Path) -> None:
    size = {"width": 320, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        while page.script("return document.documentElement.dataset.theme") != theme:
            page.find("#theme").click()
        page.driver.save_screenshot(str(tmp_path / f"{theme}.png"))
        assert page.script("return document.documentElement.scrollWidth") <= 320
        colour = page.script("return getComputedStyle(document.body).backgroundColor")
        assert (colour < "rgb(2") == (theme == "dark")
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def drop(page: Page, name: str, text: str) -> None:
    """As if a file were let go over the page."""
    page.script(
        """
        const [name, text] = arguments;
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([text], name));
        for (const kind of ["dragover", "drop"]) {
          const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
          document.body.dispatchEvent(event);
          window.wasTaken = event.defaultPrevented;
        }
        """,
        name,
        text,
    )


def test_a_chosen_epub_becomes_an_audiobook(page: Page, server: Any, tmp_path: Path) -> None:
    file = tmp_path / "tales of old.epub"
    file.write_bytes(packed(epub3()))
    page.find("#voice-F4").click()
    page.set(speed=1.5, seed=11)
    assert not page.find("#book-make").is_displayed()
    page.find("#file").send_keys(str(file))
    page.wait("!document.getElementById('book-chosen').hidden")
    assert page.find("#book-name").text.startswith("tales of old.epub, ")
    assert page.find("#book-status").text.startswith("Chosen: tales of old.epub, ")
    page.find("#book-make").send_keys(Keys.ENTER)
    told = "“Tales of Old” by Anna Abel, Bob Bell is being spoken, in 3 chapters."
    page.wait(f"document.getElementById('book-status').textContent === '{told}'")
    assert not page.find("#book-chosen").is_displayed()
    job_id = page.find("#jobs li").get_attribute("data-job")
    job = server.get(f"/jobs/{job_id}").json()
    assert (job["voice"], job["speed"], job["seed"]) == ("F4", 1.5, 11)
    assert job["text_preview"].startswith("# 1. The Fox")
    page.wait(f"document.querySelector('li[data-job=\"{job_id}\"]').dataset.state === 'done'", 60)
    assert page.console_errors() == []


def test_a_dropped_text_becomes_an_audiobook(page: Page, server: Any) -> None:
    drop(page, "tales.md", "# The Fox\nIt lived here.\n# The Crow\nSo did it.")
    assert page.script("return window.wasTaken"), "or the browser would show the file"
    assert page.script("return document.activeElement.id") == "book-make"
    assert not page.script("return document.getElementById('book-zone').matches('[data-over]')")
    page.find("#book-make").click()
    told = "tales.md is being spoken, in 2 chapters."
    page.wait(f"document.getElementById('book-status').textContent === '{told}'")
    drop(page, "plain.txt", "No titles here.")
    page.find("#book-drop").click()
    assert page.script("return document.activeElement.id") == "file"
    assert page.find("#book-status").get_attribute("textContent") == ""
    assert not page.find("#book-chosen").is_displayed()


def test_a_file_that_is_refused_says_why_beside_it(page: Page) -> None:
    for name, text, says in (
        ("book.epub", "no book", "is no EPUB: it does not begin as a ZIP archive does"),
        ("book.pdf", "%PDF-1.7", "is a PDF; what is read are EPUB"),
        ("empty.txt", "", "nothing to say"),
    ):
        drop(page, name, text)
        page.find("#book-make").click()
        page.wait(f"document.getElementById('error-file').textContent.includes('{says}')")
        assert page.find("#error-file").is_displayed() and page.find("#problem").is_displayed()
        assert page.find("#file").get_attribute("aria-invalid") == "true"
        assert page.script("return document.activeElement.id") == "file"
        assert page.find("#book-name").text.startswith(name), "it can be tried again"
        assert says in page.spoken("#file")[1]
        assert not page.find("#error-text").is_displayed()


def test_a_file_that_is_too_large_is_not_sent(page: Page) -> None:
    page.script("""
        window.fetch = () => { throw new Error("nothing is sent"); };
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([new Uint8Array(32_000_001)], "large.epub"));
        document.getElementById("file").files = dataTransfer.files;
        document.getElementById("file").dispatchEvent(new Event("change"));
    """)
    page.find("#book-make").click()
    page.wait("!document.getElementById('error-file').hidden")
    assert page.find("#error-file").text == "has 32.0 MB; at most 32.0 MB are taken"


def test_the_choice_of_a_file_is_told_to_screen_readers(page: Page) -> None:
    name, description = page.spoken("#file")
    assert name.startswith("An audiobook from a file")
    assert "EPUB, Markdown or plain text" in description
    drop(page, "tales.md", "# One\nText.")
    assert page.spoken("#book-make") == ("Make an audiobook", page.find("#book-name").text)
    assert page.find("#book-status").get_attribute("role") == "status"
