"""Handwritten digits with a small convolutional network.

The channel `train` holds digits.npz: images (n, 8, 8) of 0..16, labels (n).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import moorage


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(32 * 4 * 4, 10),
    )


def datasets(folder: Path) -> tuple[TensorDataset, TensorDataset]:
    """Four fifths to learn from, one fifth to be judged by. Images 1 x 8 x 8 in [0, 1]."""
    with np.load(folder / "digits.npz") as stored:
        images = torch.from_numpy(stored["images"]).float().div(16).unsqueeze(1)
        labels = torch.from_numpy(stored["labels"]).long()
    cut = len(images) * 4 // 5
    return TensorDataset(images[:cut], labels[:cut]), TensorDataset(images[cut:], labels[cut:])


def main() -> None:
    run = moorage.start()
    hp = run.hyperparameters(lr=2e-3, epochs=5, batch_size=32)
    training, validation = datasets(run.channel("train"))
    loader = run.loader(training, batch_size=hp.batch_size)
    validation_loader = run.loader(validation, batch_size=256, shuffle=False, drop_last=False)

    model = run.parallelize(run.build(build_model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=hp.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=hp.epochs * (len(training) // hp.batch_size))
    run.track(model=model, optimizer=optimizer, schedule=schedule)

    for _epoch in run.epochs(hp.epochs):
        for images, labels in run.batches(loader):
            loss = F.cross_entropy(model(images), labels)
            run.backward(loss)
            run.step(loss=loss)

        right = seen = 0
        for images, labels in run.evaluating(validation_loader):
            right += (model(images).argmax(1) == labels).sum().item()
            seen += len(labels)
        run.report(val_accuracy=run.sum(right) / run.sum(seen))
    run.finish(example=training[:1][0])  # one image: what `serve` is warmed up with


if __name__ == "__main__":
    main()
