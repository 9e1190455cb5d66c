"""What a proof of resume found, and what usually causes it where two runs are not alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from moorage.rehearsal.report_attempts import AttemptRow
from moorage.rehearsal.report_text import named
from moorage.rehearsal.sameness import Departure, End, Losses, Same
from moorage.rehearsal.weights import Weights

Answer = Literal["same", "diverged", "failed", "not resumed", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """answer: same (bit-exact or nearly), diverged, failed (it did not complete when interrupted), not resumed (each
    attempt began anew), unknown (nothing was interrupted, or nothing can be compared).

    alike: None where nothing was compared. interruptions: made, of how many. attempts: of the interrupted run.
    sizes: world sizes of the third run, and ends: how its losses ended; empty where none was asked for. spread: whether
    that run is good. failure: of the run that did not complete.
    """

    name: str
    folder: Path
    answer: Answer
    alike: Same | None
    losses: Losses
    weights: Weights
    interruptions: tuple[int, int]
    attempts: tuple[AttemptRow, ...]
    sizes: tuple[int, ...] = ()
    ends: tuple[End, ...] = ()
    spread: bool = True
    failure: str = ""
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def resumes(self) -> tuple[int, ...]:
        """Steps at which an attempt went on, where that was not the beginning."""
        return tuple(attempt.first for attempt in self.attempts[1:] if attempt.first)

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        for part in (value, value["losses"], value["weights"], *value["weights"]["differences"]):
            for key in ("alike", "same"):
                if isinstance(part.get(key), Same):
                    part[key] = part[key].words
        attempts = [attempt.to_json() for attempt in self.attempts]
        return {**value, "folder": str(self.folder), "attempts": attempts, "resumes": self.resumes}


def causes(
    first: Departure | None, weights: Weights, attempts: Sequence[AttemptRow], start: float | None, *, ours: bool
) -> Iterator[str]:
    """What usually is behind it, the likeliest first. start: the first value of the metric, in the uninterrupted run.
    ours: whether the program uses moorage.start()."""
    if first is None:
        yield from _weights_only(weights)
        return
    resumed = next((one.first for one in attempts if one.number == first.attempt), None)
    if first.attempt == 1 or not any(one.number < first.attempt for one in attempts):
        yield from _unrepeatable()
        return
    if first.step is None or resumed is None:
        yield from _first_step(ours)
        return
    after = first.step - resumed
    if after <= 1 and start is not None and _began_anew(first, start):
        yield (
            f"its value {first.found} is near that of an untrained model: the weights were not restored. Is the "
            "checkpoint read before the first step, from the folder that CheckpointConfig names?"
        )
    if after <= 1:
        yield from _first_step(ours)
    elif after == 2:
        yield (
            "the first step after the resume is the same and the second is not: the optimizer's state (momentum, the "
            "moments of Adam), the schedule's or the gradient scaler's was not restored"
            + ("; is it in run.track(...)?" if ours else "")
        )
    else:
        yield (
            f"the first {after - 1} steps after the resume are the same: something that comes seldom, such as the "
            "order of the next epoch (sampler.set_epoch, a generator of its own), an evaluation that draws random "
            "numbers, or a schedule by epochs"
        )


def _began_anew(first: Departure, start: float) -> bool:
    try:
        expected, found = float(first.expected), float(first.found)
    except ValueError:
        return False
    return abs(found - start) < abs(found - expected) / 2


def _unrepeatable() -> Iterator[str]:
    yield (
        "it differs before the first interruption: two uninterrupted runs would differ as well. A generator without a "
        "seed (torch, numpy, random, the loader's), a non-deterministic kernel "
        "(torch.use_deterministic_algorithms(True) finds it), or another number of threads"
    )


def _first_step(ours: bool) -> Iterator[str]:
    if ours:
        yield "state that run.track(...) does not hold: buffers, an average of weights, a second model"
        yield "data that does not come from run.loader(...), or a dataset that draws from a generator of its own"
    else:
        yield "the order of the data does not go on where it stopped: the loader began its epoch anew"
        yield "generators (torch, numpy, random) that a checkpoint does not hold: dropout, augmentation"
        yield "state that the checkpoint does not hold: buffers, an average of weights"
    yield "a non-deterministic kernel: torch.use_deterministic_algorithms(True) finds it"


def _weights_only(weights: Weights) -> Iterator[str]:
    names = [found.name for found in weights.differences if found.same is Same.APART]
    buffers = [name for name in names if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    if buffers and len(buffers) == len(names):
        yield "only statistics of batch norm differ: buffers that the checkpoint does not hold"
    elif names:
        yield (
            "no loss differs, but weights do: what no loss shows, such as an average of weights, layers that do not "
            "train, or steps behind the last loss that was written"
        )


def lines(verdict: Verdict) -> Iterator[str]:
    """For a terminal."""
    yield f"{verdict.name}: {_headline(verdict)}"
    if verdict.failure:
        yield from (f"  {line}" for line in verdict.failure.splitlines())
    yield ""
    yield from named(_facts(verdict))
    if verdict.causes:
        yield ""
        yield "usually the cause is:"
        yield from (f"  - {text}" for text in verdict.causes)
    yield from verdict.notes


def _headline(verdict: Verdict) -> str:
    first = verdict.losses.first
    match verdict.answer:
        case "same":
            assert verdict.alike is not None
            return verdict.alike.words
        case "failed":
            return "does not complete when it is interrupted" if verdict.spread else "does not complete on other sizes"
        case "not resumed":
            return "not resumed: each attempt began anew"
        case "unknown":
            return "nothing is proven"
    if not verdict.spread:
        return "diverged on other world sizes"
    if first is None:
        return "diverged: the losses are the same, the weights are not"
    where = "at the end" if first.step is None else f"at step {first.step}"
    resumed = next((one.first for one in verdict.attempts if one.number == first.attempt), None)
    behind = f", {first.step - resumed} after the resume" if first.step and resumed and first.attempt > 1 else ""
    return (
        f"diverged {where} (attempt {first.attempt}{behind}): {first.metric} is {first.found}, and was {first.expected}"
    )


def _facts(verdict: Verdict) -> Iterator[tuple[str, str]]:
    losses, weights = verdict.losses, verdict.weights
    if losses.same is not None:
        yield "losses", f"{', '.join(losses.metrics)}: {losses.same.words}, {losses.values} values"
    if weights.same is not None:
        yield "weights", f"{', '.join(weights.files)}: {weights.same.words}"
        for found in weights.differences[:5]:
            yield "", f"{found.name}: {found.why}"
        if more := weights.differences[5:]:
            yield "", f"and {len(more)} more"
    made, asked = verdict.interruptions
    yield "interruptions", f"{made} of {asked}" + (f", {_resumed(verdict)}" if made else "")
    for end in verdict.ends:
        sizes = ", ".join(map(str, verdict.sizes))
        yield (
            "world sizes",
            f"{sizes}: {end.metric} ends at {end.found:.4g} instead of {end.expected:.4g}"
            + (f"; {len(end.missing)} steps are missing or too many" if end.missing else ""),
        )
    yield "folder", str(verdict.folder)


def _resumed(verdict: Verdict) -> str:
    again = sum(attempt.replayed for attempt in verdict.attempts)
    where = f"resumed at step {', '.join(map(str, verdict.resumes))}" if verdict.resumes else "no resume was seen"
    return f"{where}; {again} steps done again"
