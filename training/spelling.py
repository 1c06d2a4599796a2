"""Stage 2, spelling: `python -m training.spelling`. Characters to the teacher's phones, no sound.

The character encoder first learns alone which sounds the letters stand for; with it the
text-to-latent stage starts from letters that already mean something. The loss is CTC, with two
slots per character ("x" is two phones).
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from supertonic.model import Supertonic
from training import fast
from training.corpus import Item, load_shard
from training.loop import autocast, initialise, load_state, save_state
from training.plan import CONFIG, SEED, WORK, device

SLOTS = 2
CHARACTERS_PER_STEP = 3000
PATH = WORK / "spelling.pt"


class PhoneHead(nn.Module):
    """Per character two slots of log probabilities over blank and phones."""

    def __init__(self, n_phones: int) -> None:
        super().__init__()
        self.linear = nn.Linear(CONFIG.text_encoder.width, SLOTS * (n_phones + 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) to (SLOTS · T, B, P + 1)
        scores = self.linear(x).float().unflatten(2, (SLOTS, -1)).flatten(1, 2)
        return scores.log_softmax(2).transpose(0, 1)


def ctc(log_probs: Tensor, lengths: Tensor, labels: list[list[int]]) -> Tensor:
    """Per phone."""
    sizes = torch.tensor([len(label) for label in labels])
    flat = torch.tensor([phone for label in labels for phone in label])
    total = F.ctc_loss(
        log_probs, flat.to(log_probs.device), SLOTS * lengths.cpu(), sizes,
        reduction="sum", zero_infinity=True,
    )  # fmt: skip
    return total / sizes.sum()


def inventory(items: list[Item]) -> list[str]:
    counts = Counter(phone.name for item in items for phone in item.phones)
    return sorted(name for name, count in counts.items() if count >= 5)


def pad_ids(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True), lengths


def batches(rows: list[Any], budget: int, rng: random.Random) -> Iterator[list[Any]]:
    """Endless batches of rows with similar length of their first part, in random order."""
    while True:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + rng.random())
        groups: list[list[Any]] = [[]]
        for i in order:
            if (len(groups[-1]) + 1) * len(rows[i][0]) > budget and groups[-1]:
                groups.append([])
            groups[-1].append(rows[i])
        rng.shuffle(groups)
        yield from groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    items = [i for path in sorted((WORK / "corpus").glob("*.pt")) for i in load_shard(path)]
    names = inventory(items)
    number = {name: index + 1 for index, name in enumerate(names)}
    rows = [(i.text_ids, [number[p.name] for p in i.phones if p.name in number]) for i in items]
    held, rows = rows[::100], [row for n, row in enumerate(rows) if n % 100]
    model = Supertonic(CONFIG)
    initialise(model)
    encoder = model.text_encoder.text_encoder.to(device())
    head = PhoneHead(len(names)).to(device())
    trained = nn.ModuleList([encoder, head])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=arguments.steps + 1, pct_start=0.1
    )
    start = load_state(
        WORK / "spelling.state.pt", trained=trained, optimizer=optimizer, schedule=schedule
    )
    feed = batches(rows, CHARACTERS_PER_STEP, random.Random(SEED + start))

    def loss_of(batch: list[Any]) -> Tensor:
        ids, lengths = pad_ids([row[0] for row in batch])
        with autocast():
            x = fast.characters(
                encoder, ids.to(device()), lengths.to(device()), CONFIG.text_encoder.dilations
            )
            return ctc(head(x), lengths, [row[1] for row in batch])

    bar = tqdm(range(start, arguments.steps), initial=start, total=arguments.steps, desc="spelling")
    for step in bar:
        loss = loss_of(next(feed))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if step % 250 == 249 or step == arguments.steps - 1:
            with torch.no_grad():
                score = sum(loss_of(held[i : i + 20]).item() for i in range(0, len(held), 20))
            bar.write(f"step {step + 1}: held out {score / len(range(0, len(held), 20)):.3f}")
            save_state(
                WORK / "spelling.state.pt",
                step + 1,
                trained=trained,
                optimizer=optimizer,
                schedule=schedule,
            )
            torch.save(
                {"names": names, "encoder": encoder.state_dict(), "head": head.state_dict()}, PATH
            )


if __name__ == "__main__":
    main()
