"""The proof of resume: a program left alone against the same one interrupted, and, if asked, on other world sizes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from moorage.errors import ConfigError
from moorage.rehearsal.events import Listener
from moorage.rehearsal.job import Interruption, Job
from moorage.rehearsal.life import rehearse
from moorage.rehearsal.outcome import Outcome
from moorage.rehearsal.report import Report, read_report
from moorage.rehearsal.sameness import Losses, Same, compare_ends, compare_losses, losses_of
from moorage.rehearsal.stopper import Stopper
from moorage.rehearsal.verdict import Answer, Verdict, causes
from moorage.rehearsal.weights import Weights, compare_weights

VERDICT = "verdict.json"
WHOLE, BROKEN, SPREAD = "uninterrupted", "interrupted", "world-sizes"
_EVERY_STEP = "log_every"
_WITHIN = 0.9
"""Of all steps, those in which interruptions come: one that comes last comes too late."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is to be proven of a job. interruptions: at random steps, where the job has none of its own. metrics: to be
    compared; none are the losses. sizes: world sizes of a third run, one for each attempt. exact: equal within
    1e-6 is not enough.

    Raises ConfigError for sizes that the hosts cannot share.
    """

    job: Job
    interruptions: int = 3
    metrics: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        if wrong := [size for size in self.sizes if size < 1 or size % self.job.hosts]:
            raise ConfigError(
                f"a world size of {wrong[0]} cannot be shared by {self.job.hosts} hosts",
                fix="give multiples of the number of hosts, as in --world-sizes 2,1,4 for one",
            )
        if len(self.sizes) == 1:
            raise ConfigError("one world size is no change", fix="give two at least: --world-sizes 2,1,4")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the rehearsals, and all that lies in its folder."""

    outcome: Outcome
    report: Report = field(repr=False)


Begins = Callable[[Job, str], None]
"""Is told each rehearsal before it begins, and what it is for."""


def prove(
    claim: Claim,
    tell: Listener,
    *,
    env: Mapping[str, str],
    stop: Stopper | None = None,
    begins: Begins = lambda job, what: None,
) -> Verdict | None:
    """Rehearse the job two or three times, in folders of its own, and compare. None where it was stopped.

    Raises what `rehearse` raises.
    """

    def rehearsed(job: Job, what: str) -> Run:
        begins(job, what)
        return Run(outcome=rehearse(job, tell, env=env, stop=stop), report=read_report(job.folder))

    def stopped() -> bool:
        return stop is not None and stop.asked

    base = _loud(claim)
    whole = rehearsed(_part(replace(base, interruptions=(), faults=(), sync_stops_at=None), WHOLE), "left alone")
    if stopped():
        return None
    if not whole.outcome.completed:
        return _written(_verdict(claim, whole, None, None))
    broken = rehearsed(_part(replace(base, interruptions=_interruptions(claim, whole)), BROKEN), "interrupted")
    spread = None
    if claim.sizes and broken.outcome.completed and not stopped():
        spread = rehearsed(_part(_sized(claim, base, whole), SPREAD), f"on {', '.join(map(str, claim.sizes))} ranks")
    return None if stopped() else _written(_verdict(claim, whole, broken, spread))


def _loud(claim: Claim) -> Job:
    """Every step in the log: it changes nothing of the training, and shows where runs part."""
    job = claim.job
    hyperparameters = {name: value for name, value in job.hyperparameters.items() if name != f"moorage_{_EVERY_STEP}"}
    ranks = claim.sizes[0] // job.hosts if claim.sizes else job.ranks_per_host
    env = {**job.env, f"MOORAGE_{_EVERY_STEP.upper()}": "1"}
    return replace(job, hyperparameters=hyperparameters, env=env, ranks_per_host=ranks)


def _part(job: Job, name: str) -> Job:
    """In a folder of its own, with checkpoints of its own: one run must not go on from another's."""
    kept = job.checkpoints
    if kept is not None:
        kept = kept / name if isinstance(kept, Path) else f"{kept.rstrip('/')}/{name}"
    return replace(job, folder=job.folder / name, checkpoints=kept)


def _interruptions(claim: Claim, whole: Run) -> tuple[Interruption, ...]:
    return claim.job.interruptions or _drawn(claim.job, claim.interruptions, whole)


def _drawn(job: Job, number: int, whole: Run) -> tuple[Interruption, ...]:
    """At steps that the job's seed draws; by the clock for a program that tells no steps."""
    like = Interruption(random=number, grace=job.grace)
    if steps := int(_WITHIN * whole.report.steps):
        return (replace(like, among=max(2, steps)),)
    chance, moment, times = random.Random(f"proof-{job.seed}"), 0.0, []
    (attempt,) = whole.outcome.attempts
    for _ in range(number):
        moment += chance.uniform(0.3, _WITHIN) * (attempt.ended - attempt.started)
        times.append(replace(like, random=None, time=moment))
    return tuple(times)


def _sized(claim: Claim, base: Job, whole: Run) -> Job:
    ranks = tuple(size // base.hosts for size in claim.sizes)
    return replace(base, ranks_by_attempt=ranks, interruptions=_drawn(base, len(ranks) - 1, whole), faults=())


def _verdict(claim: Claim, whole: Run, broken: Run | None, spread: Run | None) -> Verdict:
    names = losses_of(whole.report.traces, claim.metrics)
    if broken is None or not broken.outcome.completed:
        run = broken or whole
        return Verdict(
            name=claim.job.name, folder=claim.job.folder, answer="failed" if broken else "unknown", alike=None,
            losses=compare_losses({}, {}, names), weights=compare_weights(None, None),
            interruptions=run.outcome.interruptions, attempts=run.report.attempts,
            failure=run.outcome.failure_reason or f"{run.outcome.status}, {run.outcome.secondary}",
            notes=() if broken else ("It does not complete when it is left alone, either.",),
        )  # fmt: skip
    losses = compare_losses(whole.report.traces, broken.report.traces, names)
    weights = compare_weights(whole.outcome.model, broken.outcome.model)
    alike = max((same for same in (losses.same, weights.same) if same is not None), default=None)
    ends = compare_ends(whole.report.traces, spread.report.traces, names) if spread else ()
    answer = _answer(claim, broken, alike)
    good = spread is None or (spread.outcome.completed and all(end.close for end in ends))
    if answer == "same" and spread is not None and not good:
        answer = "diverged" if spread.outcome.completed else "failed"
    first = [point.value for point in whole.report.traces.get(losses.first.metric, [])] if losses.first else []
    ours = whole.report.goodput is not None
    return Verdict(
        name=claim.job.name, folder=claim.job.folder, answer=answer, alike=alike, losses=losses, weights=weights,
        interruptions=broken.outcome.interruptions, attempts=broken.report.attempts, sizes=claim.sizes, ends=ends,
        spread=good, failure=spread.outcome.failure_reason if spread else "",
        causes=tuple(causes(losses.first, weights, broken.report.attempts, first[0] if first else None, ours=ours))
        if answer == "diverged" and alike is Same.APART else (),
        notes=tuple(_notes(losses, weights, broken)),
    )  # fmt: skip


def _answer(claim: Claim, broken: Run, alike: Same | None) -> Answer:
    if alike is None or not broken.outcome.interruptions[0]:
        return "unknown"
    if alike is Same.APART or (claim.exact and alike is not Same.EXACT):
        return "diverged"
    return "not resumed" if _began_anew(broken) else "same"


def _began_anew(broken: Run) -> bool:
    """Each attempt, as far as is known."""
    known = [attempt.first for attempt in broken.report.attempts[1:] if attempt.first is not None]
    return bool(known) and not any(known)


def _notes(losses: Losses, weights: Weights, broken: Run) -> Sequence[str]:
    made = broken.outcome.interruptions[0]
    found = []
    if not made:
        found.append("No interruption came before the end: train longer, or name the steps by --interrupt step=N.")
    if _began_anew(broken):
        found.append("Each attempt began at step 0: no checkpoint was there, or none was read.")
    if losses.same is None:
        found.append("No loss was compared: --metric NAME=REGEX finds one in the log.")
    if weights.same is None:
        found.append("No weights were compared: the model folder was empty.")
    if losses.missing:
        found.append(f"Steps of which only one run wrote a loss, the first of them {losses.missing[0]}: not compared.")
    if weights.others:
        found.append(f"Other files of the model differ: {', '.join(weights.others[:5])}.")
    if made and broken.report.attempts and all(attempt.first is None for attempt in broken.report.attempts):
        found.append("The log tells no steps (--step-regex finds them): where it resumed is not known.")
    return found


def _written(verdict: Verdict) -> Verdict:
    text = json.dumps(verdict.to_json(), indent=1, default=str)
    (verdict.folder / VERDICT).write_text(text + "\n", encoding="utf-8")
    return verdict
