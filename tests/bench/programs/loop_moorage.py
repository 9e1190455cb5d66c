"""The loop of the README, with everything on that is on by default."""

import torch
import torch.nn.functional as F
from common import GLOBAL_BATCH, Pace, build_model, dataset

import moorage

run = moorage.start()
loader = run.loader(dataset(), batch_size=GLOBAL_BATCH)
model = run.parallelize(build_model())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
run.track(model=model, optimizer=optimizer)
pace = Pace(run.rank)


def train() -> None:
    for _epoch in run.epochs(10**6):
        for x, y in run.batches(loader):
            loss = F.cross_entropy(model(x), y)
            run.backward(loss)
            run.step(loss=loss)
            if pace.step():
                return


train()
run.finish()
