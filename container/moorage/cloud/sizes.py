"""How large a model is: of numbers that somebody gives, of a model folder, or of a program that builds it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from moorage.errors import ConfigError, ProgramError
from moorage.rehearsal.assemble import program_of, typed
from moorage.rehearsal.jobfile import Described
from moorage.training.strategy import ModelSize

BLOCKS = 32
"""Equal blocks that a model is taken to have where only its parameters are known."""

DEADLINE = 600.0
"""Seconds for a program to build its model."""

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I8": 1, "U8": 1}
_AMOUNT = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?) *(k|m|b|t|)", re.IGNORECASE)
_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def parse_amount(text: str, what: str) -> int:
    """`7e9`, `7b`, `350M`. Raises ConfigError."""
    found = _AMOUNT.fullmatch(text.strip())
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"{what} {text!r} is no number above 0", fix="write 7b, 350m or 7e9")
    return int(float(found[1]) * _FACTORS[found[2].lower()])


def parse_share(text: str, whole: int) -> int:
    """`2%` of `whole`, or a number as `parse_amount` has it. Raises ConfigError."""
    if not text.endswith("%"):
        return min(parse_amount(text, "--trainable"), whole)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ConfigError(f"--trainable {text!r} is no share", fix="write 100%, 2%, or a number of parameters")
    return max(1, int(share * whole))


def of_numbers(params: int, *, trainable: int, dtype: str) -> ModelSize:
    return ModelSize(
        num_params=params, param_bytes=params * _BYTES[dtype], trainable_params=trainable,
        group_params=-(-params // BLOCKS),
    )  # fmt: skip


def of_folder(path: Path, *, trainable: str) -> ModelSize:
    """Of all *.safetensors in a folder, or of one such file; only their headers are read. Raises ConfigError."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ConfigError(f"there is no model in {path}", why="no *.safetensors lies there", fix="name a model folder")
    tensors: dict[str, tuple[int, int]] = {}
    for file in files:
        for name, one in _header(file).items():
            count = prod(one["shape"])
            tensors[name] = (count, count * _WIDTHS.get(one["dtype"], 4))
    params = sum(count for count, _ in tensors.values())
    return ModelSize(
        num_params=params, param_bytes=sum(size for _, size in tensors.values()),
        trainable_params=parse_share(trainable, params), group_params=_largest_block(tensors),
    )  # fmt: skip


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= 100 << 20:
                raise ValueError("its header has no length that can be")
            found = json.loads(opened.read(length))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as safetensors", why=str(error), fix="name another model") from None
    return {name: one for name, one in found.items() if name != "__metadata__"}


def _largest_block(tensors: Mapping[str, tuple[int, int]]) -> int:
    """Blocks are what has a number in its name: layers.0, layers.1; what is outside of them is one more."""
    groups: dict[str, int] = {}
    for name, (count, _) in tensors.items():
        found = re.match(r".*?\.\d+(?=\.)|\d+(?=\.)", name)
        key = found[0] if found else ""
        groups[key] = groups.get(key, 0) + count
    return max(groups.values(), default=0)


def of_program(described: Described, env: Mapping[str, str]) -> ModelSize:
    """The program is run here, on the CPU, until it gives its model to run.parallelize. Raises ProgramError."""
    job = described.job
    folder, name = program_of(job.source, job.program)
    if folder is None or name is None:
        raise ConfigError("there is nothing to plan for", fix="name a program, --params 7b, or --model DIR")
    with tempfile.TemporaryDirectory(prefix="moorage-plan-") as scratch:
        base, answer = Path(scratch), Path(scratch) / "answer.json"
        _lay_out(base, described)
        ours = {"SAGEMAKER_BASE_DIR": str(base), "CUDA_VISIBLE_DEVICES": "", "TRAINING_JOB_NAME": "plan"}
        command = [sys.executable, "-m", "moorage.training.sizing", str(answer), str(folder.resolve() / name)]
        done = subprocess.run(
            [*command, *job.arguments], cwd=folder, env={**env, **job.environment, **ours}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        if not answer.exists():
            last = "; ".join(line for line in done.stdout.splitlines()[-3:] if line.strip())
            why = last or f"it ended with exit code {done.returncode}"
            raise ProgramError(
                f"{name} ended before it gave its model to run.parallelize", why=why,
                fix="try it by `moorage run`; or give the numbers: --params 7b",
            )  # fmt: skip
        return ModelSize(**json.loads(answer.read_text(encoding="utf-8")))


def _lay_out(base: Path, described: Described) -> None:
    """Data and hyperparameters where the contract has them, nothing copied."""
    config, data = base / "input" / "config", base / "input" / "data"
    for folder in (config, data):
        folder.mkdir(parents=True)
    job = described.job
    texts = {key: typed(value) for key, value in job.hyperparameters.items()}
    (config / "hyperparameters.json").write_text(json.dumps(texts), encoding="utf-8")
    channels = {}
    for name, table in job.data.items():
        if table.path:
            (data / name).symlink_to(Path(table.path).expanduser().resolve())
            channels[name] = {"TrainingInputMode": "File"}
    (config / "inputdataconfig.json").write_text(json.dumps(channels), encoding="utf-8")


def size_of(
    described: Described, *, params: str | None, model: Path | None, trainable: str, dtype: str, env: Mapping[str, str]
) -> tuple[str, ModelSize]:
    """And its name. Raises ConfigError and ProgramError."""
    if params is not None:
        count = parse_amount(params, "--params")
        return "a model", of_numbers(count, trainable=parse_share(trainable, count), dtype=dtype)
    if model is not None:
        return str(model), of_folder(model, trainable=trainable)
    found = of_program(described, env)
    return f"the model of {described.job.program}", found


def pick(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those known whose names begin so: ml.g5 is all of them. Raises ConfigError for one that none does."""
    found: list[str] = []
    for name in names:
        matching = [one for one in known if one == name or one.startswith(f"{name}.")]
        if not matching:
            raise ConfigError(
                f"the instance type {name} is not in the data", why=f"those there are: {', '.join(known)}",
                fix="name one of them, or a family such as ml.g5",
            )  # fmt: skip
        found += [one for one in matching if one not in found]
    return found
