"""How long a checkpoint of 200 MB of state (model and AdamW, 2 ranks, ddp) holds up the loop.

`pause` is the call in which the loop does nothing else. `with the next step` adds what that one takes beyond its usual
time, and `until whole` all that is lost until the checkpoint is complete on disk: a save behind the loop takes its
processor time from the loop, and on a machine whose cores are all busy that shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.harness import OUT, PROGRAMS, Row, compare
from bench.loop import TORCHRUN, start_ours
from bench.turns import Conductor

PEERS = ("torch.save", "accelerate", "dcp.save", "dcp.async_save", "memory-copy")
BEHIND = ("torch.save", "dcp.async_save")
"""Those to compare with in what follows the call."""


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
    pause, next_step, whole = ({name: [t[i] for t in turns] for name, turns in values.items()} for i in range(3))
    targets = {"torch.save": "<= 0.333"}
    rows = [
        compare("pause", "s", pause["moorage"], pause[peer], against=peer, target=targets.get(peer, ""))
        for peer in PEERS
    ]
    for name, measured in (("with the next step", next_step), ("until whole", whole)):
        rows += [compare(name, "s", measured["moorage"], measured[peer], against=peer) for peer in BEHIND]
    return rows
