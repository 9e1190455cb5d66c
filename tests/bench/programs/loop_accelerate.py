"""The loop in accelerate, as its tutorials write it."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common import GLOBAL_BATCH, LOG_EVERY, Pace, build_model, dataset
from torch.utils.data import DataLoader

accelerator = Accelerator(cpu=True)
model = build_model()
model, optimizer, loader = accelerator.prepare(
    model,
    torch.optim.AdamW(model.parameters(), lr=1e-3),
    DataLoader(dataset(), batch_size=GLOBAL_BATCH // accelerator.num_processes, shuffle=True, drop_last=True),
)
pace = Pace(accelerator.process_index)


def train() -> None:
    total = torch.zeros(())
    while True:
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            if (pace.steps + 1) % LOG_EVERY == 0:
                mean = accelerator.reduce(total, reduction="mean").item() / LOG_EVERY
                accelerator.print(f"step {pace.steps + 1} loss {mean:.4f}", flush=True)
                total.zero_()
            if pace.step():
                return


assert accelerator.num_processes == 2, "accelerate did not join its ranks"
train()
accelerator.wait_for_everyone()
accelerator.end_training()
