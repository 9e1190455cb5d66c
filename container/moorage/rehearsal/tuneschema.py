"""[tune] of moorage.toml: what a tuning job searches, and how. Imports pydantic: load it when needed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from moorage.rehearsal.tables import Duration, Table, plain

Strategy = Literal["bayesian", "random", "grid", "hyperband"]
WarmStart = Literal["identical", "transfer"]


def _range(value: Any) -> Any:
    if not value or not isinstance(value, str | list):
        raise ValueError(f'is {value!r}\ngive a text such as "1e-4:1e-1:log", or a list of values')
    return plain(value)


class Tune(Table):
    """HyperParameterTuningJobConfig and WarmStartConfig. Ranges are read where they are used."""

    objective: str | None = Field(None, min_length=1, description='"max:val_accuracy" or "min:val_loss".')
    ranges: dict[str, Annotated[Any, BeforeValidator(_range)]] = Field(
        {}, description='"1e-4:1e-1:log", "1:8" (whole numbers), or a list of values.'
    )
    strategy: Strategy = Field("bayesian", description="How the next values are chosen.")
    trials: int | None = Field(None, ge=1, description="Training jobs in all; else 10, and all of a grid.")
    parallel: int = Field(1, ge=1, description="Training jobs at once.")
    early_stopping: bool = Field(False, description="Stop trials that are worse than the median; not with hyperband.")
    min_resource: int | None = Field(None, ge=1, description="Of hyperband: reports before a trial may be stopped.")
    max_resource: int | None = Field(
        None, ge=1, le=20_000, description="Of hyperband: reports of a trial that runs to its end; else its `epochs`."
    )
    warm_start: list[str] = Field([], max_length=5, description="Tuning jobs whose results are begun with.")
    warm_start_type: WarmStart = Field("identical", description="Whether data and program are those of the parents.")
    max_run: Duration | None = Field(None, gt=0, description="MaxRuntimeInSeconds of the whole tuning job.")
    target: float | None = Field(None, description="The objective at which the tuning job may end.")
    patience: int | None = Field(None, ge=3, description="Trials without a better one after which it ends.")
    seed: int | None = Field(None, ge=0, description="RandomSeed of what is drawn.")
