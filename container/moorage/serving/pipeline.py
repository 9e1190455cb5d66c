"""A loaded model that answers requests: read, predict, write, by the handlers where there are any, else by default."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moorage.errors import ModelError
from moorage.serving import batch, codecs, media
from moorage.serving.arithmetic import Guard
from moorage.serving.codecs import OutputError
from moorage.serving.context import CONTENT_TYPE, CUSTOM_ATTRIBUTES, Context
from moorage.serving.example import Example
from moorage.serving.exchange import Answer, Request, RequestError
from moorage.serving.handlers import Handlers
from moorage.serving.importing import calling, users_traceback
from moorage.serving.inputs import Inputs
from moorage.serving.media import Media
from moorage.serving.settings import ServeSettings
from moorage.serving.streams import Stream, is_stream

log = logging.getLogger("moorage")


@dataclass(eq=False, slots=True)
class _Job:
    """A request on its way. data: what the model is given. wrapped: the body was an object, so the answer is to be.
    accept: for the default output, one of media.KNOWN; for a handler, what the client wants. has_no_form: there is a
    prediction, which cannot be written as the client accepts it.
    """

    request: Request
    context: Context | None
    accept: str = ""
    data: Any = None
    wrapped: bool = False
    answer: Answer | None = None
    has_no_form: bool = False


@dataclass(eq=False, kw_only=True)
class Pipeline:
    """A Servable. model: what handlers are given. call: how the model is called by default. known: secrets."""

    handlers: Handlers
    model: Any
    call: Callable[[Any], Any]
    inputs: Inputs
    guard: Guard
    settings: ServeSettings
    folder: Path
    device: torch.device
    example: Example | None
    what: str
    known: Sequence[str] = ()
    _joins: bool = field(default=True, init=False)

    def describe(self) -> str:
        return self.what

    # Requests

    def answer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        jobs = [self._begun(request) for request in requests]
        waiting = [job for job in jobs if job.answer is None]
        if len(waiting) > 1 and self._joins and not self.handlers.transform_fn:
            self._together(waiting)
        answers = []
        for job in jobs:
            if job.answer is None:
                self._alone(job)
            assert job.answer is not None
            answers.append(job.answer)
        return answers

    def _begun(self, request: Request) -> _Job:
        context = Context(str(self.folder), self.device, request) if self.handlers.asks else None
        job = _Job(request, context)
        try:
            self._read(job)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler may fail in any way
            self._fail(job, error)
        return job

    def _alone(self, job: _Job) -> None:
        try:
            if self.handlers.transform_fn:
                self._transform(job)
            else:
                self._write(job, self._predict(job.data, job.context))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a model may fail in any way
            self._fail(job, error)

    def _together(self, jobs: Sequence[_Job]) -> None:
        """Answer those that can be joined; a batch that fails leaves its jobs to be tried one by one."""
        groups: dict[Hashable, list[_Job]] = defaultdict(list)
        for job in jobs:
            key = True if self.handlers.collate_fn else batch.likeness(job.data)
            if key is not None:
                groups[key].append(job)
        for group in groups.values():
            if len(group) > 1:
                self._in_one(group)

    def _in_one(self, group: Sequence[_Job]) -> None:
        try:
            parts = self._predictions([job.data for job in group])
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a model may fail in any way
            _refuse_if_broken(error)
            log.warning("a batch of %d failed, and each is tried alone: %s", len(group), type(error).__name__)
            return
        if parts is None:
            self._joins = False
            log.warning(
                "requests are no longer joined: the prediction has no first dimension of as many instances as the "
                "input; collate_fn and split_fn may say how, or let max_batch_size be 1"
            )
            return
        for job, part in zip(group, parts, strict=True):
            try:
                self._write(job, part)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler may fail in any way
                self._fail(job, error)

    def _predictions(self, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """One for each; None where it cannot be said which part is whose."""
        context = Context(str(self.folder), self.device) if self.handlers.asks else None
        if not self.handlers.collate_fn or not self.handlers.split_fn:
            sizes = [batch.size_of(data) for data in inputs]
            return batch.split(self._predict(batch.join(inputs), context), sizes)
        sizes = [batch.size_of(data) if batch.likeness(data) is not None else 1 for data in inputs]
        prediction = self._predict(self.handlers.collate_fn(list(inputs)), context)
        parts = list(self.handlers.split_fn(prediction, sizes))
        if len(parts) != len(inputs):
            raise ValueError(f"split_fn gave {len(parts)} predictions for {len(inputs)} requests")
        return parts

    # The stages

    def _read(self, job: _Job) -> None:
        handlers, request, settings = self.handlers, job.request, self.settings
        if handlers.transform_fn or handlers.output_fn:
            job.accept = media.wanted(request.accept, settings.default_accept)
        else:
            job.accept = media.choose(request.accept, settings.default_accept)
            if not job.accept:
                raise RequestError(f"none of {request.accept!r} is written here: accept {codecs.OFFERED}", status=406)
        if handlers.transform_fn:
            return
        kind = media.parse(request.content_type or settings.default_content_type)
        if handlers.input_fn:
            job.data = handlers.input_fn(_data(kind, request.body), kind.name, context=job.context)
        else:
            job.data, job.wrapped = self.inputs.take(codecs.decode(kind, request.body), kind.format)

    def _predict(self, data: Any, context: Context | None) -> Any:
        with self.guard():
            if self.handlers.predict_fn:
                return self.handlers.predict_fn(data, self.model, context=context)
            return self.call(data)

    def _write(self, job: _Job, prediction: Any) -> None:
        handlers = self.handlers
        if handlers.output_fn:
            self._say(job, handlers.output_fn(prediction, job.accept, context=job.context))
        elif is_stream(prediction):
            self._say(job, prediction)
        else:
            if job.wrapped and job.accept == media.JSON and not (handlers.predict_fn and _is_object(prediction)):
                prediction = {"predictions": prediction}
            self._say(job, codecs.encode(job.accept, prediction))

    def _transform(self, job: _Job) -> None:
        assert self.handlers.transform_fn
        kind = media.parse(job.request.content_type or self.settings.default_content_type)
        data = _data(kind, job.request.body)
        with self.guard():
            result = self.handlers.transform_fn(self.model, data, kind.name, job.accept, context=job.context)
        self._say(job, result)

    def _say(self, job: _Job, result: Any) -> None:
        """The answer that a body, or what a handler returned, is."""
        content_type = job.accept
        if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
            result, content_type = result
        if isinstance(result, bytes):
            body: Any = result
        elif isinstance(result, str):
            body = result.encode()
        elif isinstance(result, bytearray | memoryview):
            body = bytes(result)
        elif is_stream(result):
            body = Stream(result, self.guard)
            content_type = media.JSON_LINES if body.is_json else content_type
        else:
            content_type = media.choose(content_type, media.JSON) or media.JSON
            body = codecs.encode(content_type, result)
        job.answer = _answer(job, body, content_type)

    # What fails

    def _fail(self, job: _Job, error: BaseException) -> None:
        _refuse_if_broken(error)
        request = job.request
        if isinstance(error, RequestError) and 400 <= error.status < 500:
            job.answer = _refused(request, error.status, error.message)
            return
        if isinstance(error, OutputError):
            log.error("request %s: %s", request.id, error.message)
            job.has_no_form = True
            job.answer = _refused(request, error.status, error.message)
            return
        log.error("request %s failed:\n%s", request.id, users_traceback(error, self.known))
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            job.answer = _refused(request, 500, "the device has no memory left for this request")
            return
        job.answer = _refused(request, 500, "the model failed on this request; the log has more")

    # Before the first

    def warm_up(self) -> str:
        handlers, started = self.handlers, time.monotonic()
        if handlers.model_warmup_fn:
            with calling("model_warmup_fn"), self.guard():
                context = Context(str(self.folder), self.device)
                handlers.model_warmup_fn(str(self.folder), self.model, context=context)
            return f"warmed up by model_warmup_fn in {time.monotonic() - started:.2f} s"
        if handlers.transform_fn or handlers.input_fn:
            name = "transform_fn" if handlers.transform_fn else "input_fn"
            return f"not warmed up: {name} alone knows what it takes; model_warmup_fn(model_dir, model) could do it"
        if self.example is None:
            return "not warmed up: the model has no example; run.finish(example=...) leaves one"
        sizes = self._warm(self.example)
        return f"warmed up with {self.example.source}, {sizes}, in {time.monotonic() - started:.2f} s"

    def _warm(self, example: Example) -> str:
        request = Request(id="warm-up", body=memoryview(example.body), content_type=example.content_type)
        job = self._begun(request)
        if job.answer is None:
            self._alone(job)
        assert job.answer is not None
        if isinstance(job.answer.body, Stream):
            job.answer.body.close()
        elif job.answer.status >= 400 and not job.has_no_form:
            raise _not_warm(example, job.answer)
        num = self.settings.max_batch_size
        if (num < 2 and not self.settings.compile) or batch.likeness(job.data) is None or not self._is_free(0):
            return "once"
        jobs = [self._begun(request) for _ in range(max(num, 2))]
        self._in_one(jobs)
        if self._joins and jobs[0].answer is None:
            raise ModelError(
                f"the model cannot take its example {len(jobs)} times at once",
                why="it did once; the log has the reason",
                fix="lower MOORAGE_MAX_BATCH_SIZE",
            )
        return f"alone and {len(jobs)} at once"

    def _is_free(self, dim: int) -> bool:
        """Whether this dimension of what the model takes may have any size."""
        spec = self.inputs.spec
        parts = spec.values() if isinstance(spec, Mapping) else [spec]
        return all(part is None or (len(part.shape) > dim and part.shape[dim] is None) for part in parts)


def _data(kind: Media, body: memoryview) -> str | bytes:
    """What input_fn is given, as AWS's containers do: text where the type is one of text."""
    return codecs.text(kind, body) if kind.format in media.TEXTS else bytes(body)


def _is_object(prediction: Any) -> bool:
    return isinstance(prediction, Mapping)


def _answer(job: _Job, body: Any, content_type: str) -> Answer:
    """With what the handler said by the context. The client's custom attributes come back unless it set others."""
    attributes = job.request.custom_attributes
    if job.context is None:
        return Answer(body=body, content_type=content_type, custom_attributes=attributes)
    headers = dict(job.context.headers)
    return Answer(
        body=body,
        status=job.context.status,
        content_type=headers.pop(CONTENT_TYPE, content_type),
        custom_attributes=headers.pop(CUSTOM_ATTRIBUTES, attributes),
        headers=headers,
    )


def _refused(request: Request, status: int, message: str) -> Answer:
    told = {"error": message, "request_id": request.id}
    return Answer(body=codecs.to_json(told), status=status, custom_attributes=request.custom_attributes)


def _refuse_if_broken(error: BaseException) -> None:
    """After an error of the device itself nothing works in this process any more: it ends, and another takes over."""
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)
    ):
        raise error


def _not_warm(example: Example, answer: Answer) -> ModelError:
    body = answer.body if isinstance(answer.body, bytes) else b"{}"
    return ModelError(
        f"the model cannot answer its example, {example.source}",
        why=str(json.loads(body).get("error", "")),
        fix="the log has the traceback; a model that cannot answer it would answer no request either",
    )
