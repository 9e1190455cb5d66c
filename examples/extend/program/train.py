"""A program baked into an image: moorage's API, and a package that the image does not have by itself."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassAccuracy

import moorage


def main() -> None:
    run = moorage.start()
    hp = run.hyperparameters(lr=2e-3, epochs=5, batch_size=32)
    with np.load(run.channel("train") / "digits.npz") as stored:
        images = torch.from_numpy(stored["images"]).float().div(16).flatten(1)
        labels = torch.from_numpy(stored["labels"]).long()
    cut = len(images) * 4 // 5
    loader = run.loader(TensorDataset(images[:cut], labels[:cut]), batch_size=hp.batch_size)
    validation = TensorDataset(images[cut:], labels[cut:])
    validation_loader = run.loader(validation, batch_size=256, shuffle=False, drop_last=False)

    model = run.parallelize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=hp.lr)
    run.track(model=model, optimizer=optimizer)
    accuracy = MulticlassAccuracy(num_classes=10, average="micro").to(run.device)

    for _epoch in run.epochs(hp.epochs):
        for x, y in run.batches(loader):
            loss = F.cross_entropy(model(x), y)
            run.backward(loss)
            run.step(loss=loss)
        for x, y in run.evaluating(validation_loader):
            accuracy.update(model(x), y)
        run.report(val_accuracy=accuracy.compute().item())  # over all ranks: torchmetrics asks them
        accuracy.reset()
    run.finish()


if __name__ == "__main__":
    main()
