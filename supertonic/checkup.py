"""Tries a model the way a doctor would: do the numbers fit, and does it behave like speech?

A wrong transpose, a wrong scale or a wrong length raises no error, it only mumbles. These checks
catch most of that without a listener. What is expected of Supertonic 2 is only a wish for the
small built-in voice, so there it warns.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supertonic.characters import encode
from supertonic.doctor import Verdict, fail, ok, warn
from supertonic.download import WEIGHTS
from supertonic.engine import Engine
from supertonic.loading import BUILTIN, load_config, load_engine, resolve_device, resolve_directory
from supertonic.model import Batch, Supertonic, draw_noise
from supertonic.styles import Style, load_styles
from supertonic.utterance import Utterance
from supertonic.voices import VOICES
from supertonic.weights import load_weights

# 100 characters; read aloud it takes 5 to 9 seconds, 0.05 to 0.09 s per character.
SENTENCE = (
    "The morning train was late again, so we waited by the window and talked about the storm "
    "for an hour."
)
SHORT = "Good morning to you."
SECONDS = (5.0, 9.0)
LOUDEST = 1.2
TOLERANCE = 1e-5
PADDING_FRAMES = 50
LIKENESS = 0.5  # correlation of loudness over time; below it, few and many steps say other things
ENVELOPE_S = 0.02


def check_model(
    model: str, model_dir: Path, device: str, precision: str = "auto"
) -> Iterator[Verdict]:
    """Load what a worker would load, then look at its numbers and listen to it by machine.

    Raises SupertonicError when it cannot be loaded at all.
    """
    device = resolve_device(device)
    yield from _processors(device)
    directory = resolve_directory(model, model_dir)[1]
    wish = warn if directory == BUILTIN else fail

    config = load_config(directory)
    with torch.device("meta"):
        network = Supertonic(config)
    load_weights(network, directory / WEIGHTS)
    state = network.state_dict()
    yield ok(f"{len(state)} tensors have the right names and shapes")
    shared = ", ".join(names[0].rsplit(".", 1)[-1] for names in network.shared_names)
    yield ok(f"the copies of {shared} agree")
    yield from check_constants(state, wish)

    duration = config.duration_predictor
    styles = load_styles(
        directory / "voice_styles",
        (config.n_style, config.style_dim),
        (duration.n_style, duration.style_dim),
    )
    missing = [voice for voice in VOICES if voice not in styles]
    yield warn(f"no voice {', '.join(missing)}") if missing else ok(f"{len(styles)} voices load")

    engine = load_engine(model, model_dir, device, precision)
    yield ok(f"the engine is {engine.name} on {engine.device} in {engine.precision}")
    if engine.is_builtin:
        yield warn(engine.description)
    yield from check_speech(engine, wish)
    yield from check_rows(network.to(device).eval(), styles, device)


def check_constants(
    state: dict[str, Tensor], wish: Callable[[str], Verdict] = fail
) -> Iterator[Verdict]:
    """Numbers that are not learned must equal their formulas."""
    for name, found in state.items():
        kind = name.rsplit(".", 1)[-1]
        if kind == "theta":
            half = found.numel()
            expected = 10 * 10000.0 ** (-torch.arange(half) / half)
        elif kind == "increments":
            expected = torch.arange(found.numel())
        else:
            continue
        # A wrong formula is off by far more than storing it in 16 bits.
        if not torch.allclose(found.flatten().cpu(), expected.float(), rtol=5e-3, atol=0):
            yield fail(f"{name} is not what its formula gives")
            return
    yield ok("theta and increments equal their formulas")

    scale = float(state["vocoder.normalizer.scale"])
    yield (
        ok("the latent scale is 0.25")
        if scale == 0.25
        else wish(f"the latent scale is {scale:g}, expected 0.25")
    )
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    if all(bool((variance > 0).all()) for variance in variances):
        yield ok("every running variance is positive")
    else:
        yield fail("a running variance is not positive: the vocoder would put out no numbers")


def check_speech(engine: Engine, wish: Callable[[str], Verdict]) -> Iterator[Verdict]:
    """Length, loudness, and whether more steps refine the same utterance."""
    spoken = {}
    for voice in engine.voices:
        audio = engine.synthesize([Utterance(SENTENCE, "en", voice, 2, 1.0, 1, 0)])[0]
        spoken[voice] = audio.samples
    seconds = {voice: len(samples) / engine.sample_rate for voice, samples in spoken.items()}
    low, high = SECONDS
    odd = [f"{voice} {s:.1f} s" for voice, s in seconds.items() if not low <= s <= high]
    span = f"{min(seconds.values()):.1f} to {max(seconds.values()):.1f} s"
    yield (
        wish(f"100 characters should take {low:g} to {high:g} s, but: {', '.join(odd)}")
        if odd
        else ok(f"100 characters take {span}, by voice")
    )

    peaks = {voice: float(np.abs(samples).max()) for voice, samples in spoken.items()}
    # Written so that a peak that is no number counts as loud.
    loud = [f"{voice} {peak:.3g}" for voice, peak in peaks.items() if not peak < LOUDEST]
    flat = [voice for voice, samples in spoken.items() if np.ptp(samples) == 0]
    if loud:
        yield fail(f"the waveform should stay below {LOUDEST}, but peaks at: {', '.join(loud)}")
    elif flat:
        yield fail(f"the waveform does not move at all for {', '.join(flat)}")
    else:
        yield ok(f"the waveform moves, and peaks at {max(peaks.values()):.2f}")

    voice = engine.voices[0]
    few, many = (
        engine.synthesize([Utterance(SENTENCE, "en", voice, steps, 1.0, 1, 0)])[0].samples
        for steps in (2, 5)
    )
    likeness = _likeness(few, many, int(ENVELOPE_S * engine.sample_rate))
    sentence = f"loudness over time with 2 and with 5 steps correlates by {likeness:.2f}"
    yield ok(sentence) if likeness >= LIKENESS else wish(f"{sentence}, expected {LIKENESS} or more")


# On a GPU convolutions would otherwise round to ten bits.
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
@torch.inference_mode()
def check_rows(network: Supertonic, styles: dict[str, Style], device: str) -> Iterator[Verdict]:
    """An utterance must sound the same alone, in a batch, and with padding behind it."""
    # As in the engine: in single precision a length could round to another sample.
    network.duration_predictor.double()
    voices = list(styles)
    texts = [SHORT, SENTENCE, *[f"{SHORT} Number {i}." for i in range(14)]]
    rows = [(text, styles[voices[i % len(voices)]]) for i, text in enumerate(texts)]

    waveforms, n_samples = network(_batch(rows[:1], device))
    alone = waveforms[0, : n_samples[0]]
    waveforms, n_samples = network(_batch(rows, device))
    yield _same("in a batch of 16", alone, waveforms[0, : n_samples[0]])

    batch = _batch(rows[:1], device)
    noise, n_frames = network.noise(batch, [len(alone)], draw_noise)
    text_emb = network.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
    latent = network.denoise(F.pad(noise, (0, PADDING_FRAMES)), n_frames, text_emb, batch)
    padded = network.vocoder(latent)[0, : len(alone)]
    yield _same(f"padded by {PADDING_FRAMES} frames", alone, padded)


def _batch(rows: list[tuple[str, Style]], device: str) -> Batch:
    ids = [encode(text, "en") for text, _ in rows]
    longest = max(map(len, ids))
    return Batch(
        text_ids=torch.tensor([row + [0] * (longest - len(row)) for row in ids], device=device),
        text_lengths=torch.tensor([len(row) for row in ids], device=device),
        style_ttl=torch.from_numpy(np.stack([style.ttl for _, style in rows])).to(device),
        style_dp=torch.from_numpy(np.stack([style.dp for _, style in rows])).to(device),
        speed=torch.ones(len(rows), device=device),
        steps=[2] * len(rows),
        seeds=[(1, index) for index in range(len(rows))],
    )


def _same(where: str, alone: Tensor, other: Tensor) -> Verdict:
    if len(alone) != len(other):
        return fail(f"one utterance has {len(alone)} samples alone, but {len(other)} {where}")
    full_scale = max(1.0, float(alone.abs().max()))
    difference = float((alone - other).abs().max()) / full_scale
    sentence = f"one utterance alone and {where} differ by {difference:.1e} of full scale"
    return ok(sentence) if difference <= TOLERANCE else fail(f"{sentence}, above {TOLERANCE:g}")


def _likeness(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """Correlation of the two loudness curves; 0 where one of them is flat."""
    a, b = (np.abs(x[: len(x) // window * window]).reshape(-1, window).mean(axis=1) for x in (a, b))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _processors(device: str) -> Iterator[Verdict]:
    capability = torch.backends.cpu.get_cpu_capability()
    yield ok(f"torch uses {torch.get_num_threads()} CPU threads with {capability} instructions")
    if not torch.cuda.is_available():
        yield ok("no CUDA device")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield ok(f"cuda:{index} is {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    yield ok(f"the model runs on {device}")
