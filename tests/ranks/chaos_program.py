"""The program that the chaos tests interrupt. It has all that could come out otherwise after an interruption.

Noise drawn by the dataset, in workers too, dropout, BatchNorm, AdamW with a schedule, an evaluation each epoch. Every
rank notes each step once it is done, with the samples it trained on and its loss, in notes/rank-N.jsonl of its host.
Where it lingers or dies, for a test, is in moments.py.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

import moorage
from ranks import moments

CLASSES, FEATURES, WIDTH = 10, 64, 48


class Digits(Dataset[tuple[int, Tensor, Tensor]]):
    """Ten digits of 64 numbers. A sample is one of them blurred in its own way, and by `noise` anew at each look."""

    def __init__(self, num_samples: int, noise: float = 0.0, seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        digits = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(0))
        self.labels = torch.randint(CLASSES, (num_samples,), generator=generator)
        self.images = digits[self.labels] + 2 * torch.randn(num_samples, FEATURES, generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        moments.linger("idle")
        image = self.images[index]
        if self.noise:
            image = image + self.noise * torch.randn(FEATURES)
        return index, image, self.labels[index]


def build_model(dropout: float, norm: bool) -> nn.Module:
    def block() -> nn.Module:
        norms = [nn.BatchNorm1d(WIDTH)] if norm else []
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), *norms, nn.ReLU(), nn.Dropout(dropout))

    return nn.Sequential(nn.Linear(FEATURES, WIDTH), block(), block(), nn.Linear(WIDTH, CLASSES))


class Notes:
    """Lines whole even when the rank is killed: each is one write."""

    def __init__(self, rank: int) -> None:
        path = Path(os.environ["SAGEMAKER_BASE_DIR"]) / "notes" / f"rank-{rank}.jsonl"
        path.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._own = {"pid": os.getpid(), "attempt": int(os.environ["TORCHELASTIC_RESTART_COUNT"])}

    def write(self, **facts: object) -> None:
        line = json.dumps({**self._own, "time": time.time(), **facts}) + "\n"
        os.write(self._descriptor, line.encode())


def main() -> None:
    run = moorage.start(log_every=1)
    moments.install()
    hp = run.hyperparameters(
        epochs=5, samples=960, batch_size=24, drop_last=True, workers=0, noise=0.5, dropout=0.1, norm=True, pause=0.004
    )
    training = Digits(hp.samples, hp.noise)
    loader = run.loader(training, batch_size=hp.batch_size, drop_last=hp.drop_last, num_workers=hp.workers)
    validation = run.loader(Digits(240, seed=2), batch_size=60, shuffle=False, drop_last=False)
    model = run.parallelize(build_model(hp.dropout, hp.norm))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = hp.epochs * (hp.samples // hp.batch_size)
    run.track(
        model=model, optimizer=optimizer, schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    )
    notes = Notes(run.rank)
    for epoch in run.epochs(hp.epochs):
        for indices, images, labels in run.batches(loader):
            loss = functional.cross_entropy(model(images), labels)
            run.backward(loss)
            time.sleep(hp.pause)  # room for an interruption: the arithmetic alone is over in a moment
            moments.linger("step")
            micro, done = run._feed.micro, run.steps_done
            assert micro is not None
            try:
                run.step(loss=loss)
            finally:  # a stop leaves through an exception, after the step
                if run.steps_done > done:
                    notes.write(
                        step=run.steps_done,
                        epoch=epoch,
                        loss=loss.item(),
                        weight=micro.weight,
                        indices=indices.tolist(),
                    )
        right = 0
        for _, images, labels in run.evaluating(validation):
            right += int((model(images).argmax(1) == labels).sum())
            time.sleep(hp.pause)
            moments.linger("evaluation")
        run.report(val_accuracy=run.sum(right) / 240)
    run.finish()


if __name__ == "__main__":
    main()
