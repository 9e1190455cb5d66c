"""A program baked into an image: moorage's API, and two packages that the image does not have by itself."""

import numpy as np
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from lion_pytorch import Lion
from torch import nn
from torch.utils.data import TensorDataset

import moorage


def build_model() -> nn.Module:
    """Sixteen patches of 2 x 2 pixels, mixed along pixels and then along patches."""
    return nn.Sequential(
        Rearrange("b (h p) (w q) -> b (h w) (p q)", p=2, q=2),
        nn.Linear(4, 16),
        nn.ReLU(),
        Rearrange("b patch feature -> b (patch feature)"),
        nn.Linear(16 * 16, 10),
    )


def main() -> None:
    run = moorage.start()
    hp = run.hyperparameters(lr=1e-3, epochs=5, batch_size=32)
    with np.load(run.channel("train") / "digits.npz") as stored:
        images = torch.from_numpy(stored["images"]).float().div(16)
        labels = torch.from_numpy(stored["labels"]).long()
    cut = len(images) * 4 // 5
    loader = run.loader(TensorDataset(images[:cut], labels[:cut]), batch_size=hp.batch_size)
    validation = TensorDataset(images[cut:], labels[cut:])
    validation_loader = run.loader(validation, batch_size=256, shuffle=False, drop_last=False)

    model = run.parallelize(build_model())
    optimizer = Lion(model.parameters(), lr=hp.lr)
    run.track(model=model, optimizer=optimizer)
    for _epoch in run.epochs(hp.epochs):
        for x, y in run.batches(loader):
            loss = F.cross_entropy(model(x), y)
            run.backward(loss)
            run.step(loss=loss)
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in run.evaluating(validation_loader))
        run.report(val_accuracy=run.sum(right) / len(validation))
    run.finish()


if __name__ == "__main__":
    main()
