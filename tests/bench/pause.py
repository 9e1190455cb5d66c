"""What a checkpoint of 200 MB of state (model and AdamW, 2 ranks, ddp) costs the loop that goes on meanwhile.

`pause` is the time in which the loop does nothing else: the call, and what a step of the optimizer waits for a copy
behind the loop. `added` is all that the loop loses until the checkpoint is complete on disk, slower steps included: a
save behind the loop takes its processor time from the loop, and on a machine whose cores are all busy that shows.
`pace` is that of the steps while the save is under way, to the usual one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.harness import OUT, PROGRAMS, Row, compare
from bench.loop import TORCHRUN, start_ours
from bench.turns import Conductor

COPYING = ("memory-copy", "dcp.async_save")
TORCH = ("torch.save", "torch.save-in-a-thread")
OTHERS = ("accelerate", "dcp.save")
TARGETS = {
    ("pause", "memory-copy"): "<= 1",
    ("pause", "dcp.async_save"): "<= 0.333",
    ("added", "torch.save"): "<= 0.5",
    ("added", "dcp.async_save"): "<= 0.8",
}
Turns = Mapping[str, Sequence[tuple[float, ...]]]
"""By contender, what it reported of each turn."""
BEHIND = ("dcp.async_save", "torch.save-in-a-thread")


def measure() -> list[Row]:
    return compared(_turns((*COPYING, *TORCH, *OTHERS), layers=16, steps=4, rounds=5), size="200 MB")


def measure_large() -> list[Row]:
    """The same with 1 GB, of which so many at once would not fit into memory."""
    return [
        row
        for peers in (COPYING, TORCH)
        for row in compared(_turns(peers, layers=80, steps=3, rounds=4), size="1 GB")
    ]  # fmt: skip


def _turns(peers: Sequence[str], *, layers: int, steps: int, rounds: int) -> Turns:
    OUT.mkdir(parents=True, exist_ok=True)
    state = {"BENCH_LAYERS": str(layers), "BENCH_STEPS": str(steps), "MOORAGE_CHECKPOINT_MINUTES": "0"}
    # On the disk of the repository: many systems keep /tmp in memory.
    with tempfile.TemporaryDirectory(dir=OUT) as name, Conductor(Path(name)) as conductor:
        folder = Path(name)
        start_ours(conductor, PROGRAMS / "pause_moorage.py", folder, **state)
        for peer in peers:
            (folder / peer).mkdir()
            conductor.start(peer, [*TORCHRUN, PROGRAMS / "pause_peers.py", peer, folder / peer], **state)
        conductor.wait_until_ready(timeout=240)
        return conductor.rounds(rounds, timeout=120)


def compared(turns: Turns, *, size: str) -> list[Row]:
    """The rows of what programs/window.py reports: seconds paused, seconds added, and how much longer a step takes."""
    pause, added, slow = ({name: [turn[i] for turn in values] for name, values in turns.items()} for i in range(3))
    pace = {name: [1 / times for times in values] for name, values in slow.items()}
    peers = [name for name in turns if name != "moorage"]
    rows = []
    for what, unit, measured, among in (
        ("pause", "s", pause, peers),
        ("added", "s", added, [peer for peer in peers if peer != "memory-copy"]),
        ("pace", "x", pace, [peer for peer in peers if peer in BEHIND]),
    ):
        for peer in among:
            target = TARGETS.get((what, peer), "")
            row = compare(f"{what}, {size}", unit, measured["moorage"], measured[peer], against=peer, target=target)
            rows.append(row)
    return rows
