"""Containers with less than usual, and jobs laid out wrongly: what works all the same, and what is said where not."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import FULL
from image.containers import Container, Containers
from image.job import DEADLINE, ContainerJob, reports

HARDENED = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
READ_ONLY = {"read_only": True, "tmpfs": {"/tmp": ""}}
SAYS_IT_RAN = """
    import os
    print("ran", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
"""


# What works


@pytest.mark.parametrize(
    ("uid", "options"),
    [
        (0, {**HARDENED, **READ_ONLY, "network": "none"}),
        (1234, {**HARDENED, **READ_ONLY}),
    ],
    ids=["root, no network", "another user"],
)
def test_digits_in_a_container_with_less(
    tmp_path: Path, containers: Containers, uid: int, options: dict[str, Any]
) -> None:
    """A read-only root needs nothing but /tmp. The other user has no entry in /etc/passwd and no home.

    Without capabilities root cannot write to a folder of somebody else either.
    """
    job = ContainerJob(containers, tmp_path, ranks=2).digits(epochs=1)
    if os.getuid() != 0:
        uid = os.getuid()
    job.belongs_to(uid)
    (host,) = job.finishes(**options, user=f"{uid}:{uid}")
    assert "val_accuracy=" in host.logs(stderr=False)
    assert job.failure() is None
    assert (job.folders["algo-1"].model / "model.safetensors").stat().st_uid == uid
    if options.get("network") == "none":
        assert "one host without a default route" in host.logs()


def test_a_wrong_network_interface_name_is_set_right(tmp_path: Path, containers: Containers) -> None:
    """As local mode of the SageMaker SDK v3 writes it."""
    job = ContainerJob(containers, tmp_path, hosts=2, interface="ethwe").digits(epochs=1)
    for host in job.finishes():
        assert "network_interface_name 'ethwe' is not in /sys/class/net" in host.logs()
        assert "GLOO_SOCKET_IFNAME=eth0" in host.logs()


WORKERS = """
    import torch, moorage
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 64
        def __getitem__(self, index):
            return torch.zeros({numbers})
    run = moorage.start()
    loader = run.loader(Data(), 8, num_workers=2)
    model = run.parallelize(torch.nn.Linear(4, 2))
    run.track(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    for _ in run.epochs(1):
        for x in run.batches(loader):
            loss = model(x[:, :4]).square().mean()
            run.backward(loss)
            run.step(loss=loss)
    print("trained to the end")
"""


def test_data_workers_with_64_mb_of_shared_memory(tmp_path: Path, containers: Containers) -> None:
    """Warned of in any case; small batches fit, and what happens to large ones is named."""
    small = ContainerJob(containers, tmp_path / "small").program(WORKERS.format(numbers=16))
    large = ContainerJob(containers, tmp_path / "large").program(WORKERS.format(numbers=4_000_000))
    (fits,), (full,) = small.start(shm_size="64m"), large.start(shm_size="64m")
    assert fits.wait(DEADLINE) == 0, fits.logs()
    assert full.wait(DEADLINE) == 1, full.logs()
    assert "trained to the end" in fits.logs(stderr=False)
    for host in (fits, full):
        assert "/dev/shm has only 64 MiB" in host.logs()
    failure = large.failure() or ""
    assert failure.startswith("rank 0 on algo-1 failed with exit code 1: ")
    assert "in DataLoader worker process" in failure
    assert "unable to allocate shared memory" in failure or "Bus error" in failure
    assert "Hint: /dev/shm is full: use fewer DataLoader workers" in failure


def test_hosts_wait_for_one_that_starts_late(tmp_path: Path, containers: Containers) -> None:
    """For the first host, whose name does not resolve before, and for another; both jobs wait at once. 30 s in
    `make chaos`, else 10.
    """
    said, least = (3, 28) if FULL else (1, 8)
    late = {"algo-1": "algo-2", "algo-2": "algo-1"}
    jobs = {name: ContainerJob(containers, tmp_path / name, hosts=2).program(SAYS_IT_RAN) for name in late}
    began = time.monotonic()
    waiting = {name: job.start(late[name])[0] for name, job in jobs.items()}
    for name, host in waiting.items():
        host.wait_for(f"waiting for {name}", times=said)
    assert time.monotonic() - began > least
    for name, job in jobs.items():
        hosts = [waiting[name], *job.start(name)]
        assert [host.wait(30) for host in hosts] == [0, 0], reports(hosts)
        assert sorted(line.partition("ran ")[2] for host in hosts for line in host.lines("ran ")) == [
            "0 of 2",
            "1 of 2",
        ]


# What does not


def ends_with(job: ContainerJob, host: Container, code: int, *words: str, name: str = "algo-1") -> None:
    """Its exit code, and that both the failure file and the log say it."""
    assert host.wait(40) == code, host.logs()
    failure = job.failure(name) or ""
    for text in words:
        assert text in failure, failure
        assert text in host.logs(stdout=False)
    assert "Traceback" not in failure and not host.lines("ran ")


def test_hosts_that_never_come_or_are_named_alike(tmp_path: Path, containers: Containers) -> None:
    """Five jobs at once: each ends when join_timeout is over, and names who is missing."""
    jobs = {}
    for what in ("no second", "no first", "second without network", "both algo-1", "both algo-2"):
        jobs[what] = ContainerJob(containers, tmp_path / what.replace(" ", "-"), hosts=2).program(SAYS_IT_RAN)
        jobs[what].settings["join_timeout"] = 4
    jobs["both algo-1"].describe("algo-2", current_host="algo-1")
    jobs["both algo-2"].describe("algo-1", current_host="algo-2")

    began = time.monotonic()
    started = {
        "no second": jobs["no second"].start("algo-1"),
        "no first": jobs["no first"].start("algo-2"),
        "second without network": [
            *jobs["second without network"].start("algo-1"),
            *jobs["second without network"].start("algo-2", network="none"),
        ],
        "both algo-1": jobs["both algo-1"].start(),
        # The one that has the name is there until the other has ended: a name that is gone again is another fault.
        "both algo-2": [*jobs["both algo-2"].start("algo-2"), *jobs["both algo-2"].start("algo-1")][::-1],
    }
    missing_second = "algo-1: algo-2 did not join within 4 s. 1 of 2 hosts never reached algo-1. look at the logs"
    missing_first = "algo-2: algo-1 could not be joined within 4 s. algo-1:7070: "
    alike = "where current_host in resourceconfig.json must be that name"
    ends_with(jobs["no second"], started["no second"][0], 69, missing_second)
    ends_with(jobs["no first"], started["no first"][0], 69, missing_first, name="algo-2")
    there, cut_off = started["second without network"]
    ends_with(jobs["second without network"], there, 69, missing_second)
    ends_with(jobs["second without network"], cut_off, 69, missing_first, "name resolution", name="algo-2")
    assert "no network interface found for algo-2" in cut_off.logs()
    for name, host in zip(("algo-1", "algo-2"), started["both algo-1"], strict=True):
        ends_with(jobs["both algo-1"], host, 69, missing_second, alike, name=name)
    for name, host in zip(("algo-1", "algo-2"), started["both algo-2"], strict=True):
        ends_with(jobs["both algo-2"], host, 69, missing_first, "Connection refused", alike, name=name)
    assert time.monotonic() - began < 30, "nobody waited much longer than join_timeout"


def test_two_of_three_hosts_named_alike(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path, hosts=3).program(SAYS_IT_RAN)
    job.describe("algo-3", current_host="algo-2")
    first, second = job.start("algo-1", "algo-2")
    first.wait_for("algo-2 joined")
    (third,) = job.start("algo-3")
    ends_with(job, third, 69, "another container named algo-2 has joined already", name="algo-3")
    assert first.running and second.running, "they wait for the real algo-3"
    second.signal("SIGTERM")
    assert [first.wait(), second.wait()] == [143, 143]


def test_a_network_that_is_cut_ends_both_hosts(tmp_path: Path, containers: Containers) -> None:
    job = ContainerJob(containers, tmp_path, hosts=2).program(
        "import time; print('begun', flush=True); time.sleep(600)"
    )
    job.settings["heartbeat_timeout"] = 3
    hosts = job.start()
    for host in hosts:
        host.wait_for("begun")
    began = time.monotonic()
    job.network.disconnect(hosts[1].engine)
    ends_with(job, hosts[0], 69, "lost the host algo-2: not heard of for")
    ends_with(job, hosts[1], 69, "lost the host algo-1: ", name="algo-2")
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("what", "options", "expected"),
    [
        ("no /tmp", {"read_only": True}, (78, "there is no folder for temporary files", "make /tmp writable")),
        ("requirements", READ_ONLY, (65, "Read-only file system", "bake the packages into an image FROM this one")),
        ("requirements", {"user": "1234:1234"}, (65, "Permission denied", "run without --user and --read-only")),
    ],
)
def test_a_container_with_too_little(
    tmp_path: Path, containers: Containers, what: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    job = ContainerJob(containers, tmp_path).program(SAYS_IT_RAN)
    if what == "requirements":
        for name, text in BUILT_BY_ITSELF.items():
            job.folders["algo-1"].file(name, text)
        job.folders["algo-1"].file("output/data/.keep")
        for folder in (job.folders["algo-1"].base / "output", job.folders["algo-1"].base / "code" / "tiny"):
            folder.chmod(0o777)
    (host,) = job.start(**options)
    ends_with(job, host, *expected)
    assert not (job.failure() or "").startswith(":")


BUILT_BY_ITSELF = {
    "code/requirements.txt": "./tiny\n",
    "code/tiny/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "tiny"\nbackend-path = ["."]\n',
    "code/tiny/tiny.py": """
import zipfile

def build_wheel(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{folder}/tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_module.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
""",
}
"""A package that needs no index to be built or installed."""
