"""Hosts as containers, on a private network, through the docker SDK."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moorage.errors import EngineError
from moorage.rehearsal.engines import Host, Lines, Said, threads
from moorage.rehearsal.hosts import HostPlan
from moorage.rehearsal.job import Job

LABEL = "moorage.rehearsal"
_PERIOD = 100_000
"""Microseconds over which the kernel counts a quota of CPU time."""
_SLOW = _PERIOD // 10
_TOGETHER = 8
"""Containers that are made at once."""

logger = logging.getLogger("moorage")

_KILL_RANK = """
for process in $(ls /proc | grep -x '[0-9]*' | sort -n); do
    if grep -qzx "LOCAL_RANK=$1" "/proc/$process/environ" 2>/dev/null; then kill -9 "$process"; exit; fi
done
exit 3
"""
# The first by number: what a rank starts has its environment too. The shell's own kill: an image may have no other.


def connect(env: Mapping[str, str], pool: int = 10) -> Any:
    """A client of the engine that DOCKER_HOST names, or the usual one. Raises EngineError."""
    try:
        import docker
        import docker.errors
    except ModuleNotFoundError:
        raise EngineError(
            "the package docker is not installed", fix="pip install 'moorage[rehearsal]', or use --engine process"
        ) from None
    with engine_errors("be reached"):
        client = docker.from_env(environment=dict(env), timeout=120, max_pool_size=pool)
        with contextlib.ExitStack() as failing:
            failing.callback(client.close)
            client.ping()
            failing.pop_all()
        return client
    raise AssertionError("unreachable")


@contextlib.contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """The engine's errors as EngineError: the container engine cannot `what`."""
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    try:
        yield
    except docker.errors.APIError as error:
        raise EngineError(
            f"the container engine cannot {what}", why=str(error.explanation or error), fix="see `moorage doctor`"
        ) from None
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise EngineError(
            f"the container engine cannot {what}",
            why=str(error),
            fix="see that it runs (`docker version`, `moorage doctor`), or use --engine process",
        ) from None


class DockerEngine:
    """labels: on every container and network, by which leftovers are found."""

    def __init__(self, job: Job, run: str, labels: Mapping[str, str], env: Mapping[str, str]) -> None:
        self._job, self._run, self._labels = job, run, {LABEL: run, **labels}
        self._env = env
        self._client: Any = None
        self._network: Any = None
        self._hosts: list[DockerHost] = []

    def prepare(self) -> None:
        # Of each host one connection reads the log as long as it lives.
        self._client = connect(self._env, pool=2 * self._job.hosts + _TOGETHER)
        self._check_image()
        with engine_errors("make a network"):
            self._network = self._client.networks.create(f"moorage-{self._run}", labels=self._labels)

    def _check_image(self) -> None:
        import docker.errors

        name = str(self._job.image)
        with engine_errors(f"look at the image {name}"):
            try:
                image = self._client.images.get(name)
            except docker.errors.ImageNotFound:
                image = self._pulled(name)
            engine = self._client.version()
        theirs = f"{image.attrs['Os']}/{image.attrs['Architecture']}"
        ours = f"{engine['Os']}/{engine['Arch']}"
        if theirs != ours and self._job.platform is None:
            raise EngineError(
                f"the image {name} is for {theirs}",
                why=f"this engine runs {ours}, and so does a training instance of that kind only",
                fix=f"build it for {ours}; or, where the engine can emulate, ask for it: --platform {theirs}",
            )

    def _pulled(self, name: str) -> Any:
        import docker.errors

        logger.info("the image %s is not here: pulling it", name)
        try:
            return self._client.images.pull(name, platform=self._job.platform)
        except docker.errors.APIError as error:
            raise EngineError(
                f"the image {name} is not here and cannot be pulled",
                why=str(error.explanation or error),
                fix="build it (`make build`), or log in to its registry",
            ) from None

    def environment(self) -> Mapping[str, str]:
        return threads(self._job)

    def create(self, plans: Sequence[HostPlan]) -> None:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            self._hosts = list(pool.map(self._created, plans))

    def start(self, said: Said) -> dict[str, Host]:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda host: host.start(said), self._hosts))
        return {host.name: host for host in self._hosts}

    def _created(self, plan: HostPlan) -> DockerHost:
        job, api = self._job, self._client.api
        cpu = {} if job.cpus is None else {"cpu_period": _PERIOD, "cpu_quota": int(job.cpus * _PERIOD)}
        with engine_errors(f"make a container of {job.image}"):
            network = self._network.name
            container = api.create_container(
                str(job.image),
                list(plan.command),
                environment=dict(plan.env),
                hostname=plan.name,
                name=f"moorage-{self._run}-{plan.name}",
                labels=self._labels,
                platform=job.platform,
                host_config=api.create_host_config(
                    binds=[f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in plan.mounts],
                    network_mode=network,
                    shm_size=job.shm_size,
                    mem_limit=job.memory,
                    device_requests=_gpus(job.gpus),
                    **cpu,
                ),
                networking_config=api.create_networking_config(
                    {network: api.create_endpoint_config(aliases=[plan.name])}
                ),
            )
            found = self._client.containers.get(container["Id"])
        return DockerHost(plan.name, found, self._network, job)

    def remove(self) -> None:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(DockerHost.remove, self._hosts))
        self._hosts = []
        self._remove_labelled()

    def _remove_labelled(self) -> None:
        """What was made while something else went wrong."""
        with engine_errors("remove the containers"):
            for container in self._client.containers.list(all=True, filters={"label": f"{LABEL}={self._run}"}):
                remove(container)

    def own(self, folder: Path) -> None:
        if os.getuid() == 0 or not folder.exists():
            return
        owner = f"{os.getuid()}:{os.getgid()}"
        with engine_errors(f"give {folder} to you"):
            self._client.containers.run(
                str(self._job.image), ["-R", owner, "/moorage"], entrypoint="chown", user="0", remove=True,
                volumes=[f"{folder.absolute()}:/moorage"], labels=self._labels, network_mode="none",
            )  # fmt: skip

    def close(self) -> None:
        if self._client is None:
            return
        try:
            self.remove()
            if self._network is not None:
                with engine_errors("remove the network"):
                    self._network.remove()
        finally:
            self._client.close()


def remove(container: Any) -> None:
    """Whatever it is doing; also where somebody else removes it at this moment."""
    import docker.errors

    try:
        container.remove(force=True, v=True)
    except docker.errors.APIError as error:
        if error.status_code not in (404, 409):  # gone, or being removed
            raise


def _gpus(asked: str | None) -> list[Any] | None:
    """As `docker run --gpus` has it: all, a number, or device=0,1."""
    import docker.types

    if asked is None:
        return None
    if asked.startswith("device="):
        chosen: dict[str, Any] = {"device_ids": asked.removeprefix("device=").split(",")}
    else:
        chosen = {"count": -1 if asked == "all" else int(asked)}
    return [docker.types.DeviceRequest(capabilities=[["gpu"]], **chosen)]


class DockerHost:
    def __init__(self, name: str, container: Any, network: Any, job: Job) -> None:
        self.name = name
        self._container, self._network, self._job = container, network, job
        self._thread: threading.Thread | None = None
        self._code: int | None = None
        self._error: EngineError | None = None
        self.memory_ran_out = False

    def start(self, said: Said) -> None:
        with engine_errors("attach to a container"):
            frames = self._container.attach(stream=True, logs=True, stdout=True, stderr=True, demux=True)
        self._thread = threading.Thread(target=self._follow, args=(frames, said), name=self.name, daemon=True)
        try:
            with engine_errors(f"start {self.name} of the image {self._job.image}"):
                self._container.start()
        except EngineError as error:
            if "executable file not found" not in error.why and "no such file" not in error.why:
                raise
            raise EngineError(
                f"the image {self._job.image} cannot be started by docker run IMAGE train",
                why=error.why,
                fix="put an executable `train` on the image's PATH, as SageMaker asks of a training image",
            ) from None
        self._thread.start()

    def _follow(self, frames: Any, said: Said) -> None:
        out, err = Lines(self.name, "stdout", said), Lines(self.name, "stderr", said)
        try:
            with engine_errors(f"say what became of {self.name}"):
                for stdout, stderr in frames:
                    out.add(stdout or b"")
                    err.add(stderr or b"")
                out.end()
                err.end()
                code = int(self._container.wait()["StatusCode"])
                self._container.reload()
                self.memory_ran_out = bool(self._container.attrs["State"].get("OOMKilled"))
                self._code = code
        except EngineError as error:
            self._error = error
        except (OSError, ValueError) as error:  # the connection is torn in the middle of a frame
            self._error = EngineError(
                f"the container engine cannot say what became of {self.name}", why=str(error), fix="see that it runs"
            )

    @property
    def code(self) -> int | None:
        if self._error is not None:
            raise self._error
        return self._code

    def signal(self, number: int) -> None:
        self._ask(lambda: self._container.kill(number), "signal a container")

    def kill_rank(self, local_rank: int) -> bool:
        with engine_errors(f"kill a rank of {self.name}"):
            code, _ = self._container.exec_run(["sh", "-c", _KILL_RANK, "sh", str(local_rank)])
        return bool(code == 0)

    def freeze(self, on: bool) -> None:
        self._ask(self._container.pause if on else self._container.unpause, "pause a container")

    def slow(self, on: bool) -> None:
        usual = -1 if self._job.cpus is None else int(self._job.cpus * _PERIOD)
        quota = _SLOW if on else usual
        self._ask(lambda: self._container.update(cpu_period=_PERIOD, cpu_quota=quota), "slow a container down")

    def cut_network(self, on: bool) -> None:
        if on:
            self._ask(lambda: self._network.disconnect(self._container, force=True), "cut a network")
        else:
            self._ask(lambda: self._network.connect(self._container, aliases=[self.name]), "mend a network")

    def _ask(self, do: Any, what: str) -> None:
        """Nothing where the container has ended meanwhile."""
        import docker.errors

        with engine_errors(what):
            try:
                do()
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):
                    raise

    def remove(self) -> None:
        with engine_errors("remove a container"):
            remove(self._container)
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(5)
