"""Lays out job folders as the platform mounts them at /opt/ml, with real data: handwritten digits.

    python examples/layout.py FOLDER...      one host; with several folders, the hosts algo-1, algo-2, ... of one job

`python examples/layout.py --help` lists the rest. A folder that is there already is left alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
HYPERPARAMETERS = {"epochs": "10", "batch_size": "32", "moorage_ranks_per_host": "2", "moorage_log_every": "20"}


def lay_out(
    folder: Path,
    hyperparameters: Mapping[str, str],
    *,
    code: Path | None = HERE / "digits",
    hosts: Sequence[str] = ("algo-1",),
    host: str = "algo-1",
    interface: str = "eth0",
) -> None:
    """The folder of one host: configuration, a channel with data, and the program. code: None where it is elsewhere.

    The folders that a job writes to (model, output, checkpoints) are made by `train`.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    config, channel = folder / "input" / "config", folder / "input" / "data" / "train"
    config.mkdir(parents=True)
    channel.mkdir(parents=True)
    files = {
        "resourceconfig.json": {"current_host": host, "hosts": list(hosts), "network_interface_name": interface},
        "inputdataconfig.json": {"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}},
        "hyperparameters.json": dict(hyperparameters),
    }
    for name, content in files.items():
        (config / name).write_text(json.dumps(content, indent=2) + "\n")
    digits = load_digits()
    np.savez(channel / "digits.npz", images=digits.images.astype("uint8"), labels=digits.target.astype("uint8"))
    if code:
        shutil.copytree(code, folder / "code", ignore=shutil.ignore_patterns("__pycache__"))


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Lays out job folders as the platform mounts them at /opt/ml.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="one for each host of the job")
    parser.add_argument("--code", type=Path, default=HERE / "digits", help="the program's folder, copied to code/")
    parser.add_argument("--no-code", action="store_true", help="the program is in the image, at /opt/program")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a hyperparameter")
    given = parser.parse_args(argv)
    if not find_spec("sklearn"):
        parser.error(
            "scikit-learn brings the data and is not installed: use .venv/bin/python, which `make setup` makes"
        )
    for folder in given.folders:
        if folder.exists():
            parser.error(f"{folder} is there already: remove it, or name another")
    if wrong := [text for text in given.set if "=" not in text]:
        parser.error(f"--set {wrong[0]}: give KEY=VALUE")
    hyperparameters = {**HYPERPARAMETERS, **dict(text.split("=", 1) for text in given.set)}
    hosts = [f"algo-{number}" for number in range(1, len(given.folders) + 1)]
    for folder, host in zip(given.folders, hosts, strict=True):
        lay_out(folder, hyperparameters, code=None if given.no_code else given.code, hosts=hosts, host=host)
        print(f"{folder}: {host} of {', '.join(hosts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
