"""How large a program's model is: the program runs until it gives its model to `run.parallelize`, and no further.

python -m moorage.training.sizing ANSWER PROGRAM [ARGS]    writes JSON to the file ANSWER
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from moorage.training import parallel
from moorage.training.strategy import ModelSize


def main(answer: Path, program: Path, arguments: Sequence[str]) -> None:
    """Ends the process, with 0 once the size is written."""
    measure = parallel.measure

    def measured(model: nn.Module, blocks: Sequence[str] = ()) -> ModelSize:
        answer.write_text(json.dumps(dataclasses.asdict(measure(model, blocks))), encoding="utf-8")
        raise SystemExit(0)

    parallel.measure = measured
    sys.argv = [str(program), *arguments]
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
