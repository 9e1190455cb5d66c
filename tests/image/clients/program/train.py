"""What the clients train: examples/digits as it is, and then a note of how this client started it.

The note is one file per rank in the output folder, which every client brings back as output.tar.gz.
"""

import json
import os
import sys
from pathlib import Path

import digits  # type: ignore[import-not-found]  # examples/digits/train.py under this name

from moorage.contract.config import JobConfig
from moorage.contract.hyperparameters import Hyperparameters

DECLARED = {"epochs": 0, "lr": 0.0, "amsgrad": False, "optimizer": "", "layers": [0], "schedule": "cosine"}


def main() -> None:
    digits.main()
    config = JobConfig.read(os.environ)
    note = {
        "host": config.current_host,
        "rank": int(os.environ.get("RANK", "0")),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "hyperparameters": Hyperparameters.resolve(config.hyperparameters, DECLARED, sys.argv[1:]).as_dict(),
        "argv": sys.argv[1:],
        "channel": os.environ.get("SM_CHANNEL_TRAIN"),
        "pid1": Path("/proc/1/cmdline").read_text().split("\0"),
    }
    file = config.paths.output_data / f"note-{note['host']}-{note['rank']}.json"
    file.write_text(json.dumps(note))


if __name__ == "__main__":
    main()
