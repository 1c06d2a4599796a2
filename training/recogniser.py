"""The judge's ear: a small phone recogniser that knows nothing but the teacher's speech.

`python -m training.recogniser` trains it (stage 6). It never hears the voice that it will judge.
It hears the teacher through other rooms and with noise behind it, as an ear does: without that, a
hiss of a hundredth of the power, which no listener minds, made it miss every third phone.
"""

import argparse
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

RATE = 22050
FFT, HOP, BANDS = 512, 256, 40
WIDTH, DILATIONS = 128, (1, 2, 4, 1, 2, 4)
FLOOR = 1e-6
EAR = Path(__file__).parent.parent / "tests" / "data" / "ear.safetensors"


@cache
def _mel() -> Tensor:
    """(257, 40) triangles."""
    top = 1127 * np.log1p(RATE / 2 / 700)
    edges = np.linspace(1127 * np.log1p(60 / 700), top, BANDS + 2)
    at = 1127 * np.log1p(np.linspace(0, RATE / 2, FFT // 2 + 1) / 700)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((at - low) / (middle - low), (high - at) / (high - middle)).clip(min=0)
    return torch.from_numpy(weights / weights.sum(0).clip(min=1e-6)).float()


def log_mel(samples: np.ndarray) -> Tensor:
    """(F, 40) log power in bands, 86 frames a second."""
    wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    window = torch.hann_window(FFT)
    spectrum = torch.stft(wave, FFT, HOP, window=window, return_complex=True, center=True)
    return ((spectrum.abs().square() / FFT).mT @ _mel() + FLOOR).log()


def features(samples: np.ndarray) -> Tensor:
    """`log_mel` without its mean over loud frames: neither loudness nor the microphone count."""
    bands = log_mel(samples)
    level = bands.mean(1)
    loud = level > level.max() - 5
    return (bands - bands[loud].mean(0)).clamp(min=-8) / 3


def disturb(x: Tensor, generator: torch.Generator) -> Tensor:
    """The same features (B, F, 40) with noise behind them and through an uneven loudspeaker."""
    size = len(x)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, 1, 1, generator=generator)

    place = torch.linspace(-1, 1, BANDS)
    # Log power against the mean of loud frames: 15 to 50 dB below it, rising or falling.
    noise = draw(-11.5, -3.5) + draw(-2, 2) * place
    power = torch.logaddexp(3 * x, noise.expand(-1, x.shape[1], -1))
    turns = draw(0, 3) * place + draw(0, 6.28)
    colour = draw(0, 1) * turns.sin() + draw(-0.7, 0.7) * place
    grain = 0.3 * torch.randn(x.shape, generator=generator)
    return ((power + colour + grain) / 3).clamp(min=-8 / 3)


class Recogniser(nn.Module):
    """Features (B, F, 40) to log probabilities over blank and phones (B, F / 2, P + 1)."""

    def __init__(self, n_phones: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(BANDS, WIDTH, 5, stride=2, padding=2)
        self.blocks = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * d, dilation=d) for d in DILATIONS
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in DILATIONS)
        self.last = nn.Linear(WIDTH, n_phones + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x.mT))
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + F.gelu(block(norm(x.mT).mT))
        return self.last(x.mT).log_softmax(2)


class Ear:
    """What is heard: names of phones."""

    def __init__(self, network: Recogniser, names: list[str]) -> None:
        self.network, self.names = network.eval(), names

    @torch.no_grad()
    def listen(self, samples: np.ndarray) -> list[str]:
        best = self.network(features(samples)[None])[0].argmax(1).tolist()
        kept = [a for a, b in zip(best, [0, *best], strict=False) if a != b and a]
        return [self.names[a - 1] for a in kept]

    @classmethod
    def load(cls, path: Path = EAR) -> "Ear":
        tensors = load_file(path)
        names = bytes(tensors.pop("names").tolist()).decode().split()
        network = Recogniser(len(names))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return cls(network, names)

    def save(self, path: Path = EAR) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.half() for name, tensor in self.network.state_dict().items()}
        tensors["names"] = torch.tensor(list(" ".join(self.names).encode()), dtype=torch.uint8)
        save_file(tensors, path)


def main() -> None:
    from training.corpus import load_shard, read_aloud, shard_path
    from training.loop import load_state, save_state, trapezoid
    from training.plan import SEED, VOICES, WORK
    from training.spelling import inventory
    from training.teacher import Teacher

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--utterances", type=int, default=2500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    cache_path = WORK / "heard.pt"
    if not cache_path.exists():
        teacher, items = Teacher(), []
        for number in range(24):
            items += [i for i in load_shard(shard_path("en", number)) if 1 < i.seconds < 6]
        items = items[: arguments.utterances]
        rows = []
        rng = random.Random(SEED)
        for item in tqdm(items, desc="listening"):
            # All voices equally: the corpus has more of the first ones.
            again, samples = read_aloud(
                teacher, item.text, item.language, rng.choice(list(VOICES)), item.rate
            )
            rows.append((features(samples).half(), [p.name for p in again.phones]))
        torch.save(rows, cache_path)
    rows = torch.load(cache_path, weights_only=True)
    names = inventory([i for n in range(6) for i in load_shard(shard_path("en", n))])
    number = {name: index + 1 for index, name in enumerate(names)}
    network = Recogniser(len(names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    state = WORK / "ear.state.pt"
    start = load_state(state, network=network, optimizer=optimizer)
    rng = random.Random(SEED + start)
    generator = torch.Generator().manual_seed(SEED + start)
    bar = tqdm(
        range(start, arguments.steps),
        initial=start,
        total=arguments.steps,
        desc="ear",
        mininterval=5,
    )
    mean = 0.0
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * trapezoid(step, 100, arguments.steps // 2, arguments.steps)
        batch = rng.sample(rows, 12)
        labels = [[number[name] for name in row[1] if name in number] for row in batch]
        sizes = torch.tensor([len(row[0]) for row in batch])
        x = nn.utils.rnn.pad_sequence([row[0].float() for row in batch], True, -8 / 3)
        x = disturb(x, generator)
        out = network(x).transpose(0, 1)
        loss = F.ctc_loss(
            out, torch.tensor([p for label in labels for p in label]), (sizes + 1) // 2,
            torch.tensor([len(label) for label in labels]), reduction="sum", zero_infinity=True,
        ) / sum(map(len, labels))  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        mean = loss.item() if step == start else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        if (step + 1) % 250 == 0:
            save_state(state, step + 1, network=network, optimizer=optimizer)
    Ear(network, names).save()


if __name__ == "__main__":
    main()
