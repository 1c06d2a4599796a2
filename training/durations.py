"""Stage 4, durations: `python -m training.durations`. How long the teacher takes, voice by voice.

Every batch mixes all lengths: with sorted ones the predictor learns nothing.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from supertonic.model import Supertonic
from training import fast
from training.corpus import USUAL_RATE, load_shard
from training.loop import Average, initialise, load_state, save_state, trapezoid, unit
from training.plan import CONFIG, SEED, VOICES, WORK, device
from training.spelling import pad_ids

STATE = WORK / "durations.state.pt"
CURVE = WORK / "durations.jsonl"
NAMES = list(VOICES)
PARTS = 6  # a batch is padded in so many groups by length


class Timer(nn.Module):
    """The duration predictor and the voices' duration styles."""

    def __init__(self) -> None:
        super().__init__()
        sizes = CONFIG.duration_predictor
        model = Supertonic(CONFIG)
        initialise(model)
        self.predictor = model.duration_predictor
        self.style_dp = nn.Parameter(torch.randn(len(NAMES), sizes.n_style, sizes.style_dim))

    def forward(self, rows: list[tuple[list[int], int, float]]) -> Tensor:
        ids, lengths = pad_ids([row[0] for row in rows])
        style = unit(self.style_dp)[torch.tensor([row[1] for row in rows])]
        seconds = fast.sentence_seconds(
            self.predictor, ids.to(device()), lengths.to(device()), style,
            CONFIG.duration_predictor.dilations,
        )  # fmt: skip
        wanted = torch.tensor([row[2] for row in rows], device=device())
        return seconds.log() - wanted.log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = [
        (item.text_ids, NAMES.index(item.voice), item.seconds)
        for path in sorted((WORK / "corpus").glob("*.pt"))
        for item in load_shard(path)
        if item.rate == USUAL_RATE
    ]
    held, rows = rows[::60], [row for n, row in enumerate(rows) if n % 60]
    timer = Timer().to(device())
    average = Average(timer, 0.995)
    optimizer = torch.optim.AdamW(
        timer.parameters(), lr=arguments.rate, weight_decay=0.01, fused=True
    )
    start = load_state(STATE, timer=timer, optimizer=optimizer, average=average)
    rng = random.Random(SEED + start)
    mean = 0.0
    bar = tqdm(
        range(start, arguments.steps),
        initial=start,
        total=arguments.steps,
        desc="durations",
        mininterval=5,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * trapezoid(
                step, 100, arguments.steps // 2, arguments.steps
            )
        batch = sorted(rng.sample(rows, arguments.batch), key=lambda row: len(row[0]))
        size = len(batch) // PARTS
        error = 0.0
        for part in range(PARTS):
            loss = timer(batch[part * size : (part + 1) * size]).abs().sum() / len(batch)
            loss.backward()
            error += loss.item()
        nn.utils.clip_grad_norm_(timer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        mean = error if step == start else 0.98 * mean + 0.02 * error
        bar.set_postfix(error=f"{mean:.3f}", refresh=False)
        if (step + 1) % 250 == 0 or step + 1 == arguments.steps:
            average.swap()
            with torch.no_grad():
                errors = torch.cat([timer(held[i : i + 1]) for i in range(0, len(held), 1)]).abs()
            average.swap()
            line = {
                "step": step + 1,
                "training": round(mean, 4),
                "held_out": round(errors.mean().item(), 4),
            }
            with Path(CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            save_state(STATE, step + 1, timer=timer, optimizer=optimizer, average=average)


if __name__ == "__main__":
    main()
