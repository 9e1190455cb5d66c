"""The loop in PyTorch alone, as its tutorials write it."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from common import GLOBAL_BATCH, LOG_EVERY, Pace, build_model, dataset
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
data = dataset()
sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(data, seed=0, drop_last=True)
loader = DataLoader(data, batch_size=GLOBAL_BATCH // world_size, sampler=sampler, drop_last=True)
model = DistributedDataParallel(build_model())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
pace = Pace(rank)


def train() -> None:
    total = torch.zeros(())
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach()
            if (pace.steps + 1) % LOG_EVERY == 0:
                dist.all_reduce(total)
                if rank == 0:
                    print(f"step {pace.steps + 1} loss {total.item() / LOG_EVERY / world_size:.4f}", flush=True)
                total.zero_()
            if pace.step():
                return
        epoch += 1


train()
dist.destroy_process_group()
