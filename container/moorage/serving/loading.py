"""From a model folder to what answers requests: what is there, how it is loaded, and how it computes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moorage.contract.secrets import known_secrets
from moorage.errors import ModelError
from moorage.serving import arithmetic, artifact, example, handlers, models
from moorage.serving.artifact import Artifact
from moorage.serving.context import Context
from moorage.serving.exchange import Servable
from moorage.serving.handlers import Handlers
from moorage.serving.importing import calling, make_importable
from moorage.serving.inputs import Inputs
from moorage.serving.models import Model
from moorage.serving.pipeline import Pipeline
from moorage.serving.settings import ServeSettings

log = logging.getLogger("moorage")


def load(folder: Path, settings: ServeSettings, *, device: str, env: Mapping[str, str]) -> Servable:
    """The model of `folder`, on `device`. Raises ModelError."""
    torch.set_num_threads(settings.num_threads or torch.get_num_threads())
    found = artifact.read(folder, env)
    make_importable(found.import_from)
    own = handlers.find(found.code, settings.handler)
    where = torch.device(device)
    model = _model(found, own, settings, where)
    call, computes = _computing(model, settings, where)
    sample = example.read(found) or model.example
    default = settings.precision if settings.precision != "fp32" else ""
    cast = bool(default) and model.ours
    return Pipeline(
        handlers=own or Handlers(file=""),
        model=model.value,
        call=call,
        inputs=Inputs(
            spec=sample.spec if sample else None,
            floats=arithmetic.DTYPES[default] if cast else None,
            cast=cast,
            device=where,
            # What a handler of theirs takes is theirs to say; without one only tensors mean something to a model.
            strict=own is None or own.predict_fn is None,
        ),
        guard=arithmetic.guard(
            where,
            autocast="" if cast else default,
            inference_mode=own is None and model.ours and not settings.compile,
        ),
        settings=settings,
        folder=folder,
        device=where,
        example=sample,
        what=", ".join(filter(None, (model.what, str(own) if own else "", computes, f"on {where}"))),
        known=known_secrets(env),
    )


def _model(found: Artifact, own: Handlers | None, settings: ServeSettings, device: torch.device) -> Model:
    context = Context(str(found.folder), device)
    if own and own.pre_model_fn:
        with calling("pre_model_fn"):
            own.pre_model_fn(str(found.folder), context=context)
    if own and own.model_fn:
        with calling("model_fn"):
            value = own.model_fn(str(found.folder), context=context)
        return models.wrap(_placed(value, device), f"model_fn of {own.file}")
    chosen, why = artifact.choose(found, unsafe_pickle=settings.unsafe_pickle)
    log.info("the model is %s: %s", chosen, why)
    return models.load(chosen, found, device)


def _placed(value: Any, device: torch.device) -> Any:
    """What model_fn returned, for inference. On a GPU only where it has left it on the CPU."""
    if not isinstance(value, nn.Module):
        return value
    value.eval()
    there = {tensor.device.type for tensor in (*value.parameters(), *value.buffers())}
    return value.to(device) if there == {"cpu"} and device.type != "cpu" else value


def _computing(model: Model, settings: ServeSettings, device: torch.device) -> tuple[Any, str]:
    """How the model is called, and a word of it."""
    said = []
    if settings.precision != "fp32":
        if settings.precision == "fp16" and device.type == "cpu":
            raise ModelError(
                "setting precision=fp16 needs a GPU", why="the model is served from a CPU", fix="use bf16, or fp32"
            )
        module = model.module
        if model.ours and module is not None:
            arithmetic.cast(module, settings.precision)
            said.append(settings.precision)
        else:
            said.append(f"{settings.precision} by autocast")
    call = model.call
    if settings.compile:
        call, done = arithmetic.compiled(model, device)
        said.append(done)
    return call, ", ".join(said)
