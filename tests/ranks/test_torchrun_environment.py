"""What a rank finds in its environment under `train` is what it finds under the torchrun that is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from support import run_train

PROGRAM = """\
import json, os
os.write(1, (json.dumps(dict(os.environ)) + "\\n").encode())  # at once: torchrun's ranks share one pipe
"""

OURS = {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_USE_AGENT_STORE"}
"""Of each launch its own. The store: rank 0 hosts a new one, for torchrun's is kept through restarts and hands new
ranks the addresses of dead ones."""

NOT_GIVEN = {"TORCHELASTIC_SIGNALS_TO_HANDLE"}
"""Read by torchrun's agent only."""


def test_every_variable_of_torchrun_is_there_with_its_value(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    shape = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *shape, str(program)]
    # One thread per rank is torchrun's choice; ours depends on the CPUs, so both are told.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=env, capture_output=True, text=True, timeout=60, check=True)
    with run_train(tmp_path / "job", PROGRAM, ranks=2, max_restarts=3, env={"OMP_NUM_THREADS": "1"}) as (host,):
        assert host.ends() == 0, host.report()
    theirs = by_rank(done.stdout)
    ours = by_rank("\n".join(line[line.index("{") :] for line in host.lines('{"')))
    assert theirs.keys() == ours.keys() == {"0", "1"}
    for rank, expected in theirs.items():
        given = {name: value for name, value in expected.items() if env.get(name) != value}
        assert given.keys() - ours[rank].keys() == NOT_GIVEN
        same = given.keys() - OURS - NOT_GIVEN
        assert {name: ours[rank][name] for name in same} == {name: given[name] for name in same}


def by_rank(output: str) -> dict[str, dict[str, str]]:
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {environment["RANK"]: environment for environment in found}
