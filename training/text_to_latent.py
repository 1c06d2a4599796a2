"""Stage 5, text to latent: `python -m training.text_to_latent`. The long one.

Flow matching: between noise x0 and the teacher's latents x1 the network learns the velocity
x1 - x0 at x_t = (1 - t) x0 + t x1, with more weight near the noise, where the words are decided.
Two hints shorten the way: attention is told where the teacher was reading, and the character
encoder keeps answering which phones its letters stand for.
"""

import argparse
import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from supertonic.model import Supertonic
from training import fast
from training.corpus import load_shard, load_space
from training.loop import Average, autocast, initialise, load_state, save_state, trapezoid, unit
from training.plan import CONFIG, SEED, VOICES, WORK, device
from training.spelling import PATH as SPELLING
from training.spelling import SLOTS, PhoneHead, ctc, inventory, pad_ids

STATE = WORK / "text_to_latent.state.pt"
CURVE = WORK / "text_to_latent.jsonl"
NAMES = list(VOICES)
READING_SPREAD = 1.5  # characters
READERS = 2  # attention heads of each group that are told; the others look where they like
PHONES = 200  # room in the phone head for the sounds of every language
LONG = 110  # tokens, 7.7 s
KEPT = ((60, 1.0), (LONG, 0.3), (10**6, 0.12))  # up to so many tokens, this share of the rows is
# used: paragraphs cost much, and their words are found only once those of sentences are.


@dataclass(frozen=True, eq=False)
class Row:
    text_ids: list[int]
    latent: Tensor  # (L, 108) float16
    reading: Tensor  # (L,)
    voice: int
    phones: list[int]


class Trainee(nn.Module):
    """The model, the voices' styles and the phone head."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Supertonic(CONFIG)
        initialise(self.model)
        self.style_ttl = nn.Parameter(torch.randn(len(NAMES), CONFIG.n_style, CONFIG.style_dim))
        self.head = PhoneHead(PHONES)
        for part in (self.model.vocoder, self.model.duration_predictor):
            part.requires_grad_(False)

    def trained(self) -> nn.ModuleList:
        return nn.ModuleList(
            [self.model.text_encoder, self.model.vector_estimator, self.head,
             nn.ParameterList([self.style_ttl])]
        )  # fmt: skip

    def encode(self, text_ids: Tensor, lengths: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.model.text_encoder
        letters = fast.characters(
            encoder.text_encoder, text_ids, lengths, CONFIG.text_encoder.dilations
        )
        return fast.prompted(encoder.speech_prompted_text_encoder, letters, style), letters

    def velocity(
        self,
        latent: Tensor,
        text_emb: Tensor,
        lengths: Tensor,
        style: Tensor,
        t: Tensor,
        copies: int,
    ) -> tuple[Tensor, list[Tensor]]:
        sizes = CONFIG.vector_estimator
        return fast.velocity(
            self.model.vector_estimator.vector_field, sizes.dilations, sizes.last_dilations,
            latent, text_emb, lengths, style, t, copies,
        )  # fmt: skip


def start_from_spelling(trainee: Trainee) -> dict[str, int]:
    """The spelling stage's encoder and head; the numbers of its phones."""
    spelling = torch.load(SPELLING, weights_only=True)
    trainee.model.text_encoder.text_encoder.load_state_dict(spelling["encoder"])
    known = len(spelling["names"]) + 1
    with torch.no_grad():
        for name, tensor in trainee.head.linear.named_parameters():
            tensor.unflatten(0, (SLOTS, -1))[:, :known] = spelling["head"][
                f"linear.{name}"
            ].unflatten(0, (SLOTS, -1))
    return {name: index + 1 for index, name in enumerate(spelling["names"])}


def load_rows(numbers: dict[str, int], languages: list[str]) -> list[Row]:
    """The corpus as latents; `numbers` grows by the phones that only other languages have."""
    space, rows = load_space(), []
    paths = [
        p for language in languages for p in sorted((WORK / "corpus").glob(f"{language}-*.pt"))
    ]
    for path in tqdm(paths, desc="latents"):
        items = load_shard(path)
        for name in inventory(items):
            if len(numbers) < PHONES:
                numbers.setdefault(name, len(numbers) + 1)
        for item in items:
            phones = [numbers[p.name] for p in item.phones if p.name in numbers]
            rows.append(
                Row(item.text_ids, item.tokens(space).half(), torch.from_numpy(item.reading()),
                    NAMES.index(item.voice), phones)
            )  # fmt: skip
    return rows


def batches(rows: list[Row], budget: int, rng: random.Random) -> Iterator[list[Row]]:
    """Endless batches whose rows are equally long, so that no padding is computed."""
    by_length: dict[int, list[Row]] = defaultdict(list)
    while True:
        for row in rng.sample(rows, len(rows)):
            if rng.random() > next(share for limit, share in KEPT if len(row.latent) <= limit):
                continue
            by_length[len(row.latent)].append(row)
        groups = []
        for length, waiting in by_length.items():
            size = max(1, budget // length)
            while len(waiting) >= size or (waiting and len(waiting) * length > 0.6 * budget):
                groups.append(waiting[:size])
                del waiting[:size]
        rng.shuffle(groups)
        yield from groups


def loss_of(
    trainee: Trainee, rows: list[Row], copies: int, hint: float, generator: torch.Generator
) -> dict[str, Tensor]:
    where = device()
    ids, lengths = pad_ids([row.text_ids for row in rows])
    ids, lengths = ids.to(where), lengths.to(where)
    style = unit(trainee.style_ttl)[torch.tensor([row.voice for row in rows])]
    clean = torch.stack([row.latent for row in rows]).float().repeat_interleave(copies, 0)
    noise = torch.randn(clean.shape, generator=generator)
    t = torch.rand(len(clean), generator=generator) ** 1.5
    noisy = (t[:, None, None] * clean + (1 - t[:, None, None]) * noise).to(where)
    target = (clean - noise).to(where)
    with autocast():
        text_emb, letters = trainee.encode(ids, lengths, style)
        v, attended = trainee.velocity(noisy, text_emb, lengths, style, t.to(where), copies)
        spelled = ctc(trainee.head(letters), lengths, [row.phones for row in rows])
    error = v.float() - target
    losses = {"flow": error.abs().mean() + 0.5 * error.square().mean(), "spelling": spelled}
    losses["mse"] = error.detach().square().mean()
    if hint > 0:
        reading = torch.stack([row.reading for row in rows]).repeat_interleave(copies, 0).to(where)
        place = torch.arange(ids.shape[1], device=where)
        near = torch.exp(-0.5 * ((place - reading[:, :, None]) / READING_SPREAD) ** 2)
        parts = [
            -(w[:, :READERS].mean(1) * near).sum(2).clamp(min=1e-4).log().mean() for w in attended
        ]
        losses["reading"] = torch.stack(parts).mean()
    return losses


@torch.no_grad()
def validate(trainee: Trainee, held: list[list[Row]], steps: int = 4) -> float:
    """Mean squared error of sampled latents against the teacher's, at the teacher's length."""
    generator = torch.Generator().manual_seed(SEED)
    total, count = 0.0, 0
    for rows in held:
        ids, lengths = pad_ids([row.text_ids for row in rows])
        ids, lengths = ids.to(device()), lengths.to(device())
        style = unit(trainee.style_ttl)[torch.tensor([row.voice for row in rows])]
        clean = torch.stack([row.latent for row in rows]).float()
        x = torch.randn(clean.shape, generator=generator).to(device())
        with autocast():
            text_emb, _ = trainee.encode(ids, lengths, style)
            for step in range(steps):
                t = torch.full((len(rows),), step / steps, device=device())
                v, _ = trainee.velocity(x, text_emb, lengths, style, t, 1)
                x = x + v.float() / steps
        total += (x.cpu() - clean).square().sum().item()
        count += clean.numel()
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--decay-from", type=int, help="default: the last third")
    parser.add_argument("--tokens", type=int, default=800, help="latent frames per step")
    parser.add_argument("--copies", type=int, default=1, help="noise draws of each")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--languages", nargs="*", default=["en"])
    parser.add_argument("--minutes", type=float, default=1e9, help="stop and save after so many")
    arguments = parser.parse_args()
    decay_from = arguments.decay_from or arguments.steps * 2 // 3
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    trainee = Trainee()
    numbers = start_from_spelling(trainee)
    trainee.to(device())
    trained = trainee.trained()
    average = Average(trained, 0.998)
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=arguments.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    start = load_state(STATE, trained=trained, optimizer=optimizer, average=average)
    rows = load_rows(numbers, arguments.languages)
    held = rows[::200]
    rows = [row for n, row in enumerate(rows) if n % 200]
    held = [[row] for row in held if len(row.latent) < LONG][:16]
    rng, generator = random.Random(SEED + start), torch.Generator().manual_seed(SEED + start)
    feed = batches(rows, arguments.tokens, rng)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    begun, mean = time.time(), defaultdict(float)
    bar = tqdm(
        range(start, arguments.steps),
        initial=start,
        total=arguments.steps,
        desc="text to latent",
        mininterval=5,
    )
    for step in bar:
        hint = max(0.03, 0.2 * 0.5 ** (step / 1500))
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * trapezoid(step, 200, decay_from, arguments.steps)
        losses = loss_of(trainee, next(feed), arguments.copies, hint, generator)
        loss = losses["flow"] + 0.1 * losses["spelling"] + hint * losses["reading"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update()
        for name, value in losses.items():
            mean[name] = value.item() if step == start else 0.98 * mean[name] + 0.02 * value.item()
        bar.set_postfix({name: f"{value:.3f}" for name, value in mean.items()}, refresh=False)
        done = step + 1
        over = bool(stopped) or time.time() - begun > 60 * arguments.minutes
        if done % 500 == 0 or done == arguments.steps or over:
            average.swap()
            sampled = validate(trainee, held)
            average.swap()
            line = {
                "step": done,
                "minutes": round((time.time() - begun) / 60, 1),
                "sampled": round(sampled, 4),
            }
            line |= {name: round(value, 4) for name, value in mean.items()}
            with Path(CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            bar.write(json.dumps(line))
            save_state(STATE, done, trained=trained, optimizer=optimizer, average=average)
        if over:
            break


if __name__ == "__main__":
    main()
