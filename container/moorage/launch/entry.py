"""What a host says of itself before the start: that it is ready, and with what, or why it cannot take part."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import moorage
from moorage.cluster import Cluster
from moorage.contract.config import JobConfig
from moorage.contract.failure import Failure
from moorage.launch.control import Link
from moorage.launch.plan import LaunchPlan, plan_launch
from moorage.launch.preparation import Preparation, Prepared

logger = logging.getLogger("moorage")


class Entry:
    """Of one host. cluster: what was found of it. secrets: not to be said."""

    def __init__(self, *, link: Link, preparation: Preparation, secrets: Sequence[str]) -> None:
        self._link, self._secrets = link, secrets
        self.cluster: Cluster | None = None
        self.is_stopping = False
        self._prepared: Prepared | None = None
        self._failure: Failure | None = None
        preparation.on_done, preparation.on_failed = self._ready, self.refuse

    def _ready(self, prepared: Prepared) -> None:
        self._prepared = prepared
        logger.info("program: %s", prepared.program.description)
        self.introduce()

    def refuse(self, failure: Failure) -> None:
        """This host cannot take part: the others shall hear why."""
        self._failure = failure.redacted(self._secrets)
        self.introduce()

    def introduce(self) -> None:
        """Say where this host stands; again on every connection before the start."""
        if self._failure is not None:
            self._link.send({"type": "failed", "attempt": None, "failure": self._failure.to_json()})
        elif self.is_stopping:
            self._link.send({"type": "stop"})
        elif self._prepared is not None and self.cluster is not None:
            # A host with another version of us would not plan alike.
            fingerprint = f"{self._prepared.program.fingerprint} (moorage {moorage.__version__})"
            self._link.send({"type": "ready", "fingerprint": fingerprint, "ranks": self.cluster.ranks_per_host})

    def plan(
        self,
        config: JobConfig,
        *,
        env: Mapping[str, str],
        ranks: Mapping[str, int],
        attempt: int,
        port: int,
        run_folder: Path,
    ) -> LaunchPlan:
        """What to start, when all hosts are ready. ranks: of each of them; the rest is as `plan_launch` has it."""
        assert self._prepared is not None and self.cluster is not None
        return plan_launch(
            config,
            self.cluster.with_ranks(ranks),
            self._prepared.program,
            env=env,
            job_env=self._prepared.job_env,
            attempt=attempt,
            port=port,
            run_folder=run_folder,
        )
