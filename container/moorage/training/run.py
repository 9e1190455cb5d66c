"""The Run: what a training program talks to."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from moorage.checkpoint.checkpointer import Checkpointer
from moorage.checkpoint.opening import open_storage
from moorage.contract.config import JobConfig
from moorage.contract.hyperparameters import Hyperparameters
from moorage.contract.ledger import Ledger
from moorage.contract.metrics import metric_line
from moorage.contract.progress import Activity
from moorage.contract.secrets import redacted
from moorage.errors import ConfigError, ExportError
from moorage.training.best import Best
from moorage.training.export import export
from moorage.training.feed import Feed, Position
from moorage.training.journal import Journal
from moorage.training.leaving import save_in_time
from moorage.training.life import Life
from moorage.training.loaders import build_loader
from moorage.training.metrics import StepMetrics, scalar
from moorage.training.parallel import clip, set_gradient_sync, spread, unwrap
from moorage.training.precision import Precision
from moorage.training.ranks import Place, Ranks
from moorage.training.recipe import Recipe, example_files
from moorage.training.saving import Saver
from moorage.training.stop import SAVE, STOP, Agreement, Phase, Stopped, StopSignal, leave_now

M = TypeVar("M", bound=nn.Module)

log = logging.getLogger("moorage")


class Run:
    """One rank's part in a training job; made by `moorage.start()`.

    A method marked collective is called on every rank alike, as a collective of torch.distributed is.
    """

    def __init__(
        self, *, config: JobConfig, place: Place, device: torch.device, stop: StopSignal, env: Mapping[str, str]
    ) -> None:
        settings = config.settings
        self.config, self.settings, self.device = config, settings, device
        self.rank, self.world_size, self.host_rank = place.rank, place.world_size, place.host_rank
        self._place, self._stop, self._ranks = place, stop, Ranks(place)
        self._agreement = Agreement(self._ranks.group)
        self._position = Position()
        run_folder = Path(env["MOORAGE_RUN_FOLDER"]) if "MOORAGE_RUN_FOLDER" in env else None
        self._life = Life(run_folder, place.local_rank, device)
        self._feed = Feed(
            self._position, place=place, device=device, seed=settings.seed,
            accumulation=settings.accumulation, prepare=self._prepare_micro_batch, watch=self._life.watch,
        )  # fmt: skip
        self._ledger = Ledger.of_run(run_folder) if place.local_rank == 0 else Ledger.none()
        self._journal = Journal(self._ledger)
        checkpointer = Checkpointer(
            open_storage(config, env), rank=place.rank, world_size=place.world_size, local_rank=place.local_rank,
            host=config.current_host, keep=settings.keep, keep_every=settings.keep_every, attempt=place.attempt,
            uploads=config.upload_agent, upload_bound=60 * settings.upload_minutes,
        )  # fmt: skip
        self._saver = Saver(
            checkpointer, settings=settings, ledger=self._ledger, rank=place.rank, warm_start=config.warm_start_folder
        )  # fmt: skip
        self._precision = Precision(settings.precision, device)
        self._best = Best.of(settings)
        self._step_metrics, self._last_metrics = StepMetrics(), dict[str, float]()
        self._hyperparameters: Hyperparameters | None = None
        self._trackers = self._open_trackers(env)
        self._models: dict[str, nn.Module] = {}
        self._recipes: list[tuple[nn.Module, Recipe]] = []
        self._optimizers: list[Optimizer] = []
        self._schedulers: list[LRScheduler] = []
        self._prepared = False

    # What a program asks of its job

    @property
    def is_main(self) -> bool:
        """Whether this is global rank 0, which prints, logs and writes the model."""
        return self.rank == 0

    @property
    def steps_done(self) -> int:
        """Optimizer steps done in all, those before an interruption included."""
        return self._position.step

    @property
    def epoch(self) -> int:
        return self._position.epoch

    @property
    def model_folder(self) -> Path:
        return self.config.paths.model

    def hyperparameters(self, **declared: Any) -> Hyperparameters:
        """The job's hyperparameters, typed by their defaults: hyperparameters(lr=1e-3).lr is a float.

        What the job gives and the program did not declare is reported. Raises ConfigError for a value that does not
        convert, naming key, value and type.
        """
        found = Hyperparameters.resolve(self.config.hyperparameters, declared, sys.argv[1:])
        for name, text in found.undeclared.items() if self.is_main else ():
            hint = found.nearest(name)
            log.warning(
                "hyperparameter %s=%s is not used by the program%s",
                name, redacted(name, text), f": did you mean {hint}?" if hint else "",
            )  # fmt: skip
        self._hyperparameters = found
        return found

    def build(self, factory: Callable[..., M], /, **arguments: Any) -> M:
        """`factory(**arguments)`, a module. `run.finish()` writes down how it was built, for `serve` to build it again.

        factory: a function or class at the top level of a file; arguments: what JSON can hold. The Python files of the
        program's folder are shipped with the model. Raises ProgramError for what could not be built again.
        """
        recipe = Recipe.of(factory, arguments)
        model = factory(**arguments)
        self._recipes.append((model, recipe))
        return model

    def channel(self, name: str, *, may_be_empty: bool = False) -> Path:
        """The folder of an input channel. Raises ConfigError when the job has none of that name, or it is empty."""
        channel = self.config.channel(name)
        if channel.input_mode != "Pipe" and not may_be_empty and not _holds_a_file(channel.folder):
            raise ConfigError(
                f"channel {name!r} is empty at {channel.folder}",
                why="its S3Uri holds no object, or none was left for this host of a sharded channel",
                fix="check the channel's S3Uri, or ask with may_be_empty=True",
            )
        return channel.folder

    # Building

    def loader(
        self, dataset: Any, batch_size: int, *, shuffle: bool = True, drop_last: bool = True, **options: Any
    ) -> Any:
        """A DataLoader of this rank's part of `dataset`.

        batch_size: samples per optimizer step over all ranks and micro-batches. Other options go to DataLoader.
        An iterable dataset gets torchdata's StatefulDataLoader: its batch_size is divided by the ranks, each rank
        draws its own part of the stream, and it resumes on the same ranks and workers only.
        Raises ConfigError when there is nothing to load.
        """
        return build_loader(
            dataset, batch_size, shuffle=shuffle, drop_last=drop_last, options=options, seed=self.settings.seed,
            accumulation=self.settings.accumulation, place=self._place, device=self.device,
        )  # fmt: skip

    def parallelize(
        self,
        model: nn.Module | Callable[[], nn.Module],
        *,
        blocks: Sequence[str] = (),
        find_unused_parameters: bool = False,
    ) -> nn.Module:
        """`model` on its device, spread by the strategy: as it is, DDP, FSDP2 or HSDP. Collective.

        Rank 0's weights are those of all. Where the model is large, give the function that builds it: under fsdp and
        hsdp only rank 0 then builds it in full, on its CPU; a model built on the meta device is never whole anywhere.
        blocks: class names of the repeated blocks, which are sharded, recomputed and compiled one by one, where they
        are not found by themselves. find_unused_parameters: for ddp, where some parameters sit some steps out.
        Raises ConfigError for a strategy the ranks cannot form.
        """
        model, choice = spread(
            model, settings=self.settings, device=self.device, world_size=self.world_size,
            ranks_per_host=self._place.local_world_size, precision=self._precision, blocks=blocks,
            find_unused_parameters=find_unused_parameters,
        )  # fmt: skip
        self._saver.strategy = choice.strategy
        self._life.watch.follow(model, sharded=choice.strategy in ("fsdp", "hsdp"), compiled=self.settings.compile)
        return model

    def track(self, **things: Any) -> None:
        """Name what a checkpoint holds: anything with state_dict and load_state_dict. Collective.

        Restores it from the newest checkpoint that verifies. Raises CheckpointError when there are checkpoints but
        none can be used, or they are of something else.
        """
        first = not self._saver.tracks_anything
        for name, thing in things.items():
            self._sort_in(name, thing)
        manifest = self._saver.track(things)
        if not first:
            return
        if self._precision.scaler is not None:
            self._saver.track({"grad_scaler": self._precision.scaler}, optional=True)
        if manifest is None:
            return
        position = self._position
        position.step, position.epoch, position.samples = manifest.step, manifest.epoch, manifest.samples
        run_state = self._saver.run_state(manifest)
        self._best.restore(run_state["best"])
        self._feed.restore(run_state["feed"], self._saver.restore_rank())
        self._life.resumed(position.step)
        if self._trackers:
            self._trackers.resumed(position.step)

    def _sort_in(self, name: str, thing: Any) -> None:
        if isinstance(thing, nn.Module):
            self._models[name] = thing
        elif isinstance(thing, Optimizer):
            self._optimizers.append(thing)
        elif isinstance(thing, LRScheduler) and not isinstance(thing, ReduceLROnPlateau):
            self._schedulers.append(thing)
        elif not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise ConfigError(
                f"run.track({name}=...): a {type(thing).__name__} has no state_dict and load_state_dict",
                fix="track an object that has both",
            )

    # The loop

    def epochs(self, num: int) -> Iterator[int]:
        """The epochs still to do, from the one the checkpoint was in. Ends early when patience is exhausted."""
        self._begin_training()
        position = self._position
        while position.epoch < num and not self._best.exhausted:
            yield position.epoch
            position.epoch, position.samples = position.epoch + 1, 0
        if self._best.exhausted:
            log.info(
                "ending early: %s has not been better than %g for %d reports",
                self._best.metric, self._best.value, self.settings.patience,
            )  # fmt: skip

    def batches(self, loader: Any) -> Iterator[Any]:
        """This rank's micro-batches of the rest of the epoch, on its device."""
        self._begin_training()
        return self._feed.batches(loader)

    def backward(self, loss: torch.Tensor) -> None:
        """Backward of the mean loss over this rank's micro-batch, weighted and scaled as the step needs it."""
        self._life.watch.halt()
        micro = self._feed.micro
        if micro is not None and micro.weight != 1:
            loss = loss * micro.weight
        self._precision.scale(loss).backward()

    def step(self, **metrics: Any) -> None:
        """End a micro-batch. When the accumulation is whole: clip, step and zero the tracked optimizers, step the
        tracked schedulers, count, log, save when due, stop when asked. Collective.

        metrics: numbers or one-element tensors, logged as train_<name>, averaged over steps and ranks. Raises Stopped
        (a SystemExit) after the save when the job was asked to stop.
        """
        self._step_metrics.add(metrics)
        micro = self._feed.close_micro_batch()
        if micro is not None and not micro.last:
            return
        self._optimize()
        self.advance(micro.num_samples if micro is not None else 0)

    def _optimize(self) -> None:
        for optimizer in self._optimizers:
            self._precision.unscale(optimizer)
        if self.settings.clip_norm:
            for model in self._models.values():
                clip(model, self.settings.clip_norm)
        for optimizer in self._optimizers:
            self._precision.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        skipped = self._precision.update()
        for scheduler in self._schedulers if not skipped else ():
            scheduler.step()

    def advance(self, num_samples: int = 0) -> None:
        """Count a step in a loop that steps its optimizers itself; log, save when due, stop when asked. Collective.

        num_samples: those consumed by the step over all ranks, where they do not come from run.batches.
        """
        self._stop.begin_training()
        self._position.step += 1
        self._position.samples += num_samples
        self._life.step(self._position.step)
        self._journal.step(self._position.step)
        if not self._prepared:
            self._saver.prepare(self._run_state(), self._feed.stream_state())
            self._prepared = True
        every = self.settings.log_every
        if every and self._position.step % every == 0:
            self._log(self._take_step_metrics())
        wishes = self._stop_wish() | (SAVE if self.is_main and self._saver.time_is_due() else 0)
        agreed = self._agreement.exchange(wishes)
        self._saver.stepped()
        if agreed & STOP:
            self.leave()
        if agreed & SAVE or self._saver.steps_are_due(self._position.step):
            self.save()

    def save(self) -> None:
        """Save a checkpoint now. Collective."""
        self._save()

    @property
    def should_stop(self) -> bool:
        """Whether the ranks agree to stop, for loops of one's own, which then call run.leave(). Collective."""
        self._begin_training()
        return bool(self._agreement.settle(self._stop_wish(), able=STOP))

    def leave(self) -> None:
        """Save, and end this rank as a stop asks it to. Collective. Raises Stopped.

        Where a save would not end within the setting `grace`, the last checkpoint is kept, with a word in the log.
        A trial of a tuning job leaves the weights of the best report in the model folder too.
        """
        self._life.finishing()
        step, grace = self._position.step, self.settings.grace
        left = save_in_time(
            self._saver, self._ranks, self._save, step=step, grace=grace, ends=self._stop.ends(grace)
        )  # fmt: skip
        self._ledger.write("stopped", step=step, kept=left.kept)
        if self.config.is_trial and not left.late:
            self._leave_best()
        self._life.left()
        if left.late:
            leave_now()
        self._close(stopped=True)
        raise Stopped

    def _leave_best(self) -> None:
        """A tuning job stops its trials for good, and takes what is in the model folder then. Collective."""
        if self._best.step == -1:
            return
        try:
            self._export({}, {})
        except ExportError as error:
            # The state is saved: the stop is honoured all the same.
            log.warning("the best model so far is not kept: %s", error)

    # Evaluation and reports

    def evaluating(self, loader: Any) -> Iterator[Any]:
        """This rank's part of `loader`, once through, without touching the training's state. Collective.

        Every sample comes once over all ranks, and every rank gets the same number of batches; meanwhile the tracked
        models are in eval mode and gradients are off. A stop is honoured between two batches.
        """
        self._begin_training()
        with (
            self._life.during(Activity.EVALUATING),
            self._journal.evaluation(self._position.step),
            self._apart_from_training(),
        ):
            for batch in self._feed.evaluation(loader):
                yield batch
                self._life.sign()
                if self._agreement.exchange(self._stop_wish(), able=STOP):
                    break
            else:
                return
        self.leave()

    @contextmanager
    def _apart_from_training(self) -> Iterator[None]:
        modes = {model: model.training for model in self._models.values()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            for model in modes:
                model.eval()
            try:
                yield
            finally:
                for model, mode in modes.items():
                    model.train(mode)

    def mean(self, value: Any, weight: float = 1.0) -> float:
        """The mean of `value` over the ranks, each counted by its `weight`, such as a number of samples. Collective."""
        total, weights = self._ranks.sums([scalar("value", value) * weight, weight])
        return total / weights if weights else float("nan")

    def sum(self, value: Any) -> float:
        """The sum of `value` over the ranks. Collective."""
        return self._ranks.sums([scalar("value", value)])[0]

    def report(self, **metrics: Any) -> None:
        """Report an evaluation: one metric line, and the best kept. Rank 0's numbers count for all. Collective."""
        values = {name: scalar(name, value) for name, value in metrics.items()}
        values = dict(zip(values, self._ranks.from_main(list(values.values())), strict=True))
        self._log({**self._take_step_metrics(), **values})
        if self._best.update(self._position.step, values):
            self._save(best=True)

    def _take_step_metrics(self) -> dict[str, float]:
        means = self._step_metrics.take()
        return {
            name: total / self.world_size
            for name, total in zip(means, self._ranks.sums([*means.values()]), strict=True)
        }

    def _log(self, values: Mapping[str, float]) -> None:
        if not values:
            return
        self._last_metrics.update(values)
        if self.is_main:
            sys.stdout.write(metric_line(self._position.step, self._position.epoch, values))
            sys.stdout.flush()
        if self._trackers:
            self._trackers.log(values, self._position.step)

    # The end

    def finish(self, *, example: Any = None) -> None:
        """Save the last checkpoint, and write the model as safetensors into the model folder from rank 0. Collective.

        The weights are those of the best report when the setting `best` names a metric, else the last ones. example:
        of what the model takes, for `serve` to warm it up with and to check requests by: a tensor or array with the
        batch first, several by name, or any value of JSON. Raises ProgramError for one that cannot be written down.
        """
        beside, told = ({}, {}) if example is None else example_files(example)
        self._stop.phase = Phase.FINISHING
        self._life.finishing()
        self._agreement.settle(0)
        self._log(self._take_step_metrics())
        self._save(wait=True)
        self._export(beside, {"example": told} if told else {})
        self._ledger.write("finished", step=self._position.step)
        self._close()

    def _export(self, beside: Mapping[str, bytes], told: Mapping[str, Any]) -> None:
        facts = {
            **told,
            "step": self._load_best(), "epoch": self._position.epoch, "metrics": self._last_metrics,
            "strategy": self._saver.strategy, "world_size": self.world_size,
            "hyperparameters": self._hyperparameters.shown() if self._hyperparameters else {},
        }  # fmt: skip
        for name, model in self._models.items():
            folder = self.model_folder if len(self._models) == 1 else self.model_folder / name
            recipe = next((recipe for built, recipe in self._recipes if built is unwrap(model)), None)
            if recipe is None:
                export(model, folder, facts, is_main=self.is_main, beside=beside)
                continue
            factory = {"name": recipe.name, "arguments": dict(recipe.arguments)}
            code = recipe.code() if self.is_main else {}
            export(model, folder, {**facts, "factory": factory}, is_main=self.is_main, beside={**beside, **code})

    def _load_best(self) -> int:
        """The step of the weights now in the models."""
        last, best = self._position.step, self._best.step
        if best in (-1, last):
            return last
        if self._saver.load_weights(best, self._models):
            return best
        log.warning("the checkpoint of the best step %d is gone: writing the weights of step %d", best, last)
        return last

    def _save(self, *, best: bool = False, wait: bool = False) -> None:
        with self._life.during(Activity.SAVING):
            self._saver.save(
                self._position,
                run_state=self._run_state(),
                stream=self._feed.stream_state(),
                metrics=self._last_metrics,
                best=best,
                wait=wait,
            )

    def _run_state(self) -> dict[str, Any]:
        return {"best": self._best.state(), "feed": self._feed.state()}

    def _close(self, *, stopped: bool = False) -> None:
        self._saver.close()
        if self._trackers:
            self._trackers.finish(stopped=stopped)
        self._ranks.part()

    # Inside

    def _begin_training(self) -> None:
        self._stop.begin_training()
        self._journal.begin(self._position.step)

    def _stop_wish(self) -> int:
        return STOP if self._stop.requested else 0

    def _prepare_micro_batch(self, last: bool) -> None:
        if self.settings.accumulation > 1:
            for model in self._models.values():
                set_gradient_sync(model, last)

    def _open_trackers(self, env: Mapping[str, str]) -> Any:
        recorded = "MLFLOW_TRACKING_URI" in env
        if not self.is_main or not (self.settings.trackers or recorded):
            return None
        from moorage.training.trackers import Trackers
        from moorage.training.tracking import record

        recorder = record(self.config, env, world_size=self.world_size, params=self._given) if recorded else None
        folder = self.config.paths.output_data
        return Trackers(self.settings.trackers, self.config.name, folder, self._given(), recorder)

    def _given(self) -> dict[str, str]:
        """The hyperparameters, as they may be shown: those of the job, and what the program made of them."""
        declared = self._hyperparameters.shown() if self._hyperparameters else {}
        return {
            **{name: redacted(name, text) for name, text in self.config.hyperparameters.items()},
            **{name: str(value) for name, value in declared.items()},
        }


def _holds_a_file(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_file() for path in folder.rglob("*"))
