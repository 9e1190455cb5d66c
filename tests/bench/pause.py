"""How long a checkpoint of 200 MB of state (model and AdamW, 2 ranks, ddp) holds up the loop.

The pause is the call, and what the next step has to wait for beyond its usual time. `until whole` is all the time lost
until the checkpoint is complete on disk: a save in the background takes its processor time from the loop.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.harness import OUT, PROGRAMS, Row, compare
from bench.loop import TORCHRUN, start_ours
from bench.turns import Conductor

PEERS = ("torch.save", "accelerate", "dcp.save", "dcp.async_save", "memory-copy")


def measure(*, rounds: int = 9) -> list[Row]:
    OUT.mkdir(parents=True, exist_ok=True)
    # On the disk of the repository: many systems keep /tmp in memory.
    with tempfile.TemporaryDirectory(dir=OUT) as name, Conductor(Path(name)) as conductor:
        folder = Path(name)
        start_ours(conductor, PROGRAMS / "pause_moorage.py", folder)
        for peer in PEERS:
            (folder / peer).mkdir()
            conductor.start(peer, [*TORCHRUN, PROGRAMS / "pause_peers.py", peer, folder / peer])
        conductor.wait_until_ready(timeout=240)
        values = conductor.rounds(rounds, timeout=120)
    pause = {name: [turn[0] for turn in turns] for name, turns in values.items()}
    lost = {name: [turn[1] for turn in turns] for name, turns in values.items()}
    targets = {"torch.save": "<= 0.333"}
    rows = [
        compare("pause", "s", pause["moorage"], pause[peer], against=peer, target=targets.get(peer, ""))
        for peer in PEERS
    ]
    whole = ("torch.save", "dcp.async_save")
    return rows + [compare("until whole", "s", lost["moorage"], lost[peer], against=peer) for peer in whole]
