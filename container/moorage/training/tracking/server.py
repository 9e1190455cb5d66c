"""The run in MLflow, through its own client: at a server's URL, at the ARN of a managed one, or in a local folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moorage.training.tracking.spool import Point

IDENTITY = "moorage.identity"
"""The tag by which a job that was interrupted finds its run again."""

FAILURE = "moorage.failure"
"""The tag that says why the job has failed."""

MANY = 1000
"""Metrics in one request, at most (MLflow's REST API, runs/log-batch); 100 for parameters and tags."""

_CLIENT = {
    # What does not answer is tried again by us, later, and never keeps the end of a job waiting for minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # A container under network isolation would try to tell MLflow's makers of itself.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""How MLflow's client behaves, by its own variables; what the user has set stays."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a run is recorded. uri: as MLFLOW_TRACKING_URI has it; a path is a folder. run_id: of one that is there."""

    uri: str
    experiment: str
    experiment_id: str = ""
    run_id: str = ""

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Target | None:
        """By MLflow's own variables; None where no MLFLOW_TRACKING_URI says where."""
        uri = env.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            return None
        return cls(
            uri=uri,
            experiment=env.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "moorage",
            experiment_id=env.get("MLFLOW_EXPERIMENT_ID", "").strip(),
            run_id=env.get("MLFLOW_RUN_ID", "").strip(),
        )

    @property
    def folder(self) -> Path | None:
        """Where it is a folder and not a server."""
        parts = urlsplit(self.uri)
        if parts.scheme in ("", "file"):
            return Path(parts.path).absolute()
        return None

    @property
    def needs(self) -> Mapping[str, str]:
        """Packages without which it is not reached, each with a module of its own by which it is found."""
        if self.uri.startswith("arn:"):
            return {"mlflow-skinny": "mlflow", "sagemaker-mlflow": "sagemaker_mlflow"}
        in_file = self.folder or self.uri.startswith("sqlite:")
        return {"mlflow": "alembic"} if in_file else {"mlflow-skinny": "mlflow"}

    @property
    def shown(self) -> str:
        """For the log: without a password."""
        parts = urlsplit(self.uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(kw_only=True)
class Server:
    """An open run. sent: the last step that it has of each metric. Its methods raise what MLflow's client raises."""

    client: Any
    run_id: str
    experiment_id: str
    sent: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(
        cls, target: Target, *, identity: str, name: str, environ: MutableMapping[str, str] = os.environ
    ) -> Server:
        """The run with that identity, gone on with, or a new one."""
        for variable, value in _CLIENT.items():
            environ.setdefault(variable, value)
        from mlflow.entities import ViewType
        from mlflow.tracking import MlflowClient

        client = MlflowClient(_store(target))
        if target.run_id:
            run = client.get_run(target.run_id)
        else:
            experiment = target.experiment_id or _experiment(client, target)
            found = client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity}'", ViewType.ACTIVE_ONLY, 1)
            run = found[0] if found else client.create_run(experiment, tags={IDENTITY: identity}, run_name=name)
        server = cls(client=client, run_id=run.info.run_id, experiment_id=run.info.experiment_id)
        client.update_run(server.run_id, status="RUNNING")
        if FAILURE in run.data.tags:  # started again
            client.delete_tag(server.run_id, FAILURE)
        server.look()
        return server

    def look(self) -> None:
        """Ask what the run has: after a request that failed, nobody knows whether it was carried out."""
        names = self.client.get_run(self.run_id).data.metrics
        self.sent = {
            name: max(metric.step for metric in self.client.get_metric_history(self.run_id, name)) for name in names
        }

    def send(self, points: Sequence[Point]) -> None:
        """Those the run does not have. A step that was trained again after an interruption is in it once."""
        from mlflow.entities import Metric

        fresh, last = [], dict(self.sent)
        for point in points:
            if point.step > last.get(point.name, -1):
                last[point.name] = point.step
                fresh.append(Metric(point.name, point.value, point.time, point.step))
        for start in range(0, len(fresh), MANY):
            part = fresh[start : start + MANY]
            self.client.log_batch(self.run_id, metrics=part)
            self.sent |= {metric.key: metric.step for metric in part}

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
        """Set parameters and tags. A parameter can never change: those that the run has with another value are
        returned, as name -> the value it has."""
        from mlflow.entities import Param, RunTag

        there = self.client.get_run(self.run_id).data.params
        cut = {name: value[:6000] for name, value in params.items()}
        fresh = [Param(name, value) for name, value in cut.items() if name not in there]
        for start in range(0, len(fresh), 100):
            self.client.log_batch(self.run_id, params=fresh[start : start + 100])
        self.client.log_batch(self.run_id, tags=[RunTag(name, value[:5000]) for name, value in tags.items()])
        return {name: there[name] for name, value in cut.items() if there.get(name, value) != value}

    def keep(self, files: Sequence[Path]) -> None:
        """Upload artifacts."""
        for file in files:
            self.client.log_artifact(self.run_id, str(file))

    def end(self, status: str) -> None:
        """status: FINISHED, KILLED or FAILED, as MLflow has them."""
        self.client.set_terminated(self.run_id, status)


def _store(target: Target) -> str:
    """A folder is SQLite in it: MLflow keeps no files of its own any more."""
    if target.folder is None:
        return target.uri
    target.folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{target.folder / 'mlflow.db'}"


def _experiment(client: Any, target: Target) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        where = (target.folder / "artifacts").as_uri() if target.folder else None
        try:
            return str(client.create_experiment(target.experiment, artifact_location=where))
        except MlflowException:  # another job of the same moment has made it
            found = client.get_experiment_by_name(target.experiment)
            if found is None:
                raise
    return str(found.experiment_id)
