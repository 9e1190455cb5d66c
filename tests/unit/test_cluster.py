"""`detect` on machines laid out in a folder: what it finds, why, and what it warns of."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moorage.cluster import Cluster, System, detect
from moorage.cluster.cluster import _ranks
from moorage.cluster.devices import Devices
from moorage.contract.config import JobConfig
from moorage.errors import ClusterError, ConfigError

GIB = 1 << 30
ROUTES = """Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth1\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


class Machine:
    """A folder laid out like the files `detect` reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
        self.file("proc/cpuinfo", "processor : 0\nmodel name\t: Graviton\n")
        self.file("proc/net/route", ROUTES)
        self.file("proc/self/cgroup", "0::/\n")
        for interface, state in (("lo", "unknown"), ("eth0", "up"), ("eth1", "up")):
            self.file(f"sys/class/net/{interface}/operstate", f"{state}\n")
        (root / "dev" / "shm").mkdir(parents=True)

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def system(self, *, cpus: int = 8, shm: int = GIB, address: str = "192.168.1.7") -> System:
        def resolve(host: str, _port: None) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

        return System(root=self.root, resolve=resolve, allowed_cpus=lambda: cpus, size_of=lambda _folder: shm)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def job(tmp_path: Path, env: Mapping[str, str] | None = None, **resource: Any) -> JobConfig:
    given = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0", **resource}
    config = tmp_path / "ml" / "input" / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "resourceconfig.json").write_text(json.dumps(given))
    return JobConfig.read({"SAGEMAKER_BASE_DIR": str(tmp_path / "ml"), **(env or {})})


def why(cluster: Cluster, what: str) -> str:
    return next(reason.why for reason in cluster.reasons if reason.what == what)


def test_a_cpu_host(tmp_path: Path, machine: Machine) -> None:
    cluster = detect(job(tmp_path), {}, system=machine.system())
    assert cluster.devices == Devices(kind="cpu", names=("Graviton",), memory=(16 * GIB,))
    assert (cluster.ranks_per_host, cluster.world_size, cluster.host_rank) == (1, 1, 0)
    assert (cluster.num_cpus, cluster.memory, cluster.shm, cluster.efa) == (8, 16 * GIB, GIB, 0)
    assert cluster.network_interface == "eth0"
    assert cluster.env == {"NCCL_HOSTID": "algo-1", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}
    assert cluster.warnings == ()


def test_the_real_machine_is_described_in_one_aligned_block(tmp_path: Path) -> None:
    cluster = detect(job(tmp_path, network_interface_name="lo"), {})
    assert cluster.network_interface == "lo"
    assert cluster.memory > 0
    assert cluster.num_cpus >= 1
    lines = cluster.describe().splitlines()
    assert [line.split()[0] for line in lines] == [
        *("host", "devices", "ranks", "cpus", "memory", "shm", "network", "efa", "variables"),
    ]
    column = lines[0].index("algo-1")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_hosts_of_different_sizes_get_their_ranks_in_the_order_of_the_hosts(tmp_path: Path, machine: Machine) -> None:
    config = job(tmp_path, current_host="algo-2", hosts=["algo-3", "algo-2", "algo-1"])
    cluster = detect(config, {}, system=machine.system())
    assert (cluster.host_rank, cluster.world_size) == (1, 3)
    cluster = cluster.with_ranks({"algo-1": 8, "algo-2": 4, "algo-3": 2})
    assert (cluster.first_rank, cluster.ranks_per_host, cluster.world_size) == (8, 4, 14)
    assert why(cluster, "world size") == "algo-1: 8, algo-2: 4, algo-3: 2"
    again = cluster.with_ranks({"algo-1": 2, "algo-2": 2, "algo-3": 2})
    assert why(again, "world size") == "the same on every host"
    assert again.describe().count("world size") == 1


def test_a_host_without_ranks_is_named(tmp_path: Path, machine: Machine) -> None:
    cluster = detect(job(tmp_path, hosts=["algo-1", "algo-2"]), {}, system=machine.system())
    with pytest.raises(ClusterError, match="algo-2"):
        cluster.with_ranks({"algo-1": 2})


def test_instance_groups_are_carried(tmp_path: Path, machine: Machine) -> None:
    groups = [{"instance_group_name": "gpu", "instance_type": "ml.c5.large", "hosts": ["algo-1"]}]
    config = job(tmp_path, instance_groups=groups, current_group_name="gpu", current_instance_type="ml.c5.large")
    cluster = detect(config, {}, system=machine.system())
    assert cluster.instance_groups[0].hosts == ("algo-1",)
    assert why(cluster, "host") == "resourceconfig.json: ml.c5.large, group gpu"


def test_ranks_per_host_is_the_users_to_set(tmp_path: Path, machine: Machine) -> None:
    cluster = detect(job(tmp_path, {"MOORAGE_RANKS_PER_HOST": "3"}), {}, system=machine.system())
    assert cluster.ranks_per_host == 3
    assert why(cluster, "ranks") == "the setting ranks_per_host"


def test_more_ranks_than_gpus_is_an_error_naming_both(tmp_path: Path) -> None:
    gpus = Devices(kind="cuda", names=("A100",) * 8, memory=(40 * GIB,) * 8)
    with pytest.raises(ConfigError) as caught:
        _ranks(job(tmp_path, {"MOORAGE_RANKS_PER_HOST": "16"}), gpus)
    assert "ranks_per_host is 16, but algo-1 has 8 GPUs" in str(caught.value)
    assert _ranks(job(tmp_path), gpus)[0] == 8
    ranks, _reason, warnings = _ranks(job(tmp_path, {"MOORAGE_RANKS_PER_HOST": "6"}), gpus)
    assert ranks == 6
    assert "2 of 8 GPUs stay idle" in warnings[0]


def test_neuron_devices_are_counted(tmp_path: Path, machine: Machine) -> None:
    for name in ("neuron0", "neuron1", "neuron10", "neuron_control"):
        machine.file(f"dev/{name}")
    cluster = detect(job(tmp_path), {}, system=machine.system())
    assert (cluster.devices.kind, cluster.devices.count, cluster.ranks_per_host) == ("neuron", 3, 3)


@pytest.mark.parametrize("instance_type", ["ml.p4d.24xlarge", "ml.g6e.xlarge", "ml.trn1.32xlarge"])
def test_an_accelerator_that_should_be_there_is_missed(tmp_path: Path, machine: Machine, instance_type: str) -> None:
    cluster = detect(job(tmp_path, current_instance_type=instance_type), {}, system=machine.system())
    assert any(instance_type in warning and "on the CPU" in warning for warning in cluster.warnings)


@pytest.mark.parametrize(
    ("files", "num_cpus"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        ({"sys/fs/cgroup/cpu.max": "250000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
        ({"sys/fs/cgroup/cpu.max": "1600000 100000"}, 8),
        (
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                "sys/fs/cgroup/jobs/cpu.max": "300000 100000",
                "sys/fs/cgroup/jobs/one/cpu.max": "max 100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
)
def test_cpus_of_the_cgroup(tmp_path: Path, machine: Machine, files: dict[str, str], num_cpus: int) -> None:
    for path, text in files.items():
        machine.file(path, text + "\n")
    cluster = detect(job(tmp_path), {}, system=machine.system())
    assert cluster.num_cpus == num_cpus
    assert ("cgroup" in why(cluster, "cpus")) == (num_cpus < 8)


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"sys/fs/cgroup/memory.max": "max"}, 16 * GIB),
        ({"sys/fs/cgroup/memory.max": str(4 * GIB)}, 4 * GIB),
        ({"sys/fs/cgroup/memory.max": str(64 * GIB)}, 16 * GIB),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": str(2 * GIB),
                "sys/fs/cgroup/a/b/memory.max": str(3 * GIB),
            },
            2 * GIB,
        ),
        (
            {"proc/self/cgroup": "4:memory:/docker/abc\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB)},
            GIB,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            16 * GIB,
        ),
    ],
)
def test_memory_of_the_cgroup(tmp_path: Path, machine: Machine, files: dict[str, str], memory: int) -> None:
    for path, text in files.items():
        machine.file(path, text + "\n")
    assert detect(job(tmp_path), {}, system=machine.system()).memory == memory


@pytest.mark.parametrize(("shm", "warned"), [(64 << 20, True), (1 << 20, True), (65 << 20, False)])
def test_a_small_shm_is_warned_of(tmp_path: Path, machine: Machine, shm: int, warned: bool) -> None:
    warnings = detect(job(tmp_path), {}, system=machine.system(shm=shm)).warnings
    assert any("DataLoader workers" in warning and "--shm-size" in warning for warning in warnings) == warned


def test_no_shm_at_all_is_warned_of(tmp_path: Path, machine: Machine) -> None:
    (machine.root / "dev" / "shm").rmdir()
    cluster = detect(job(tmp_path), {}, system=System(root=machine.root))
    assert cluster.shm == 0
    assert "/dev/shm cannot be used" in cluster.warnings[0]


def test_an_interface_that_is_not_there_gives_way_to_the_default_route(tmp_path: Path, machine: Machine) -> None:
    cluster = detect(job(tmp_path, network_interface_name="ethwe"), {}, system=machine.system())
    assert cluster.network_interface == "eth0"
    assert why(cluster, "network") == (
        "it carries the default route; network_interface_name 'ethwe' is not in /sys/class/net"
    )


def test_with_several_hosts_the_own_address_decides(tmp_path: Path, machine: Machine) -> None:
    config = job(tmp_path, network_interface_name="ethwe", hosts=["algo-1", "algo-2"])
    assert detect(config, {}, system=machine.system(address="192.168.1.7")).network_interface == "eth1"
    assert detect(config, {}, system=machine.system(address="172.17.0.9")).network_interface == "eth0"
    # Debian's /etc/hosts gives a host name 127.0.1.1, where no other host would reach it.
    assert detect(config, {}, system=machine.system(address="127.0.1.1")).network_interface == "eth0"


def test_hosts_on_the_loopback_use_it(tmp_path: Path) -> None:
    config = job(tmp_path, network_interface_name="", current_host="127.0.0.2", hosts=["127.0.0.1", "127.0.0.2"])
    assert detect(config, {}).network_interface == "lo"


def test_an_interface_that_is_down_is_not_used(tmp_path: Path, machine: Machine) -> None:
    machine.file("sys/class/net/eth1/operstate", "down\n")
    cluster = detect(job(tmp_path, network_interface_name="eth1"), {}, system=machine.system())
    assert cluster.network_interface == "eth0"
    assert "is down" in why(cluster, "network")


def test_without_any_route_one_host_uses_the_loopback_and_several_are_warned(tmp_path: Path, machine: Machine) -> None:
    machine.file("proc/net/route", ROUTES.splitlines()[0] + "\n")
    one = detect(job(tmp_path, network_interface_name=""), {}, system=machine.system())
    assert one.env["GLOO_SOCKET_IFNAME"] == "lo"
    config = job(tmp_path, network_interface_name="", hosts=["algo-1", "algo-2"])
    two = detect(config, {}, system=machine.system())
    assert two.network_interface == ""
    assert "GLOO_SOCKET_IFNAME" not in two.env
    assert "no network interface found for algo-1" in two.warnings[0]


def test_nccl_gets_an_exact_name_where_a_prefix_would_match_two(tmp_path: Path, machine: Machine) -> None:
    machine.file("sys/class/net/eth10/operstate", "up\n")
    env = detect(job(tmp_path, network_interface_name="eth1"), {}, system=machine.system()).env
    assert env["NCCL_SOCKET_IFNAME"] == "=eth1"
    assert env["GLOO_SOCKET_IFNAME"] == "eth1"


def test_efa_is_found_by_its_devices(tmp_path: Path, machine: Machine) -> None:
    for number in range(4):
        machine.file(f"dev/infiniband/uverbs{number}")
    cluster = detect(job(tmp_path), {}, system=machine.system())
    assert cluster.efa == 4
    assert cluster.env["FI_EFA_USE_HUGE_PAGE"] == "0"
    assert "FI_PROVIDER" not in cluster.env
    assert "NCCL_NET_PLUGIN" not in cluster.env


def test_the_efa_plugin_of_the_image_is_named_to_nccl_where_efa_is(tmp_path: Path, machine: Machine) -> None:
    machine.file("opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so")
    assert "NCCL_NET_PLUGIN" not in detect(job(tmp_path), {}, system=machine.system()).env
    machine.file("dev/infiniband/uverbs0")
    cluster = detect(job(tmp_path), {}, system=machine.system())
    assert cluster.env["NCCL_NET_PLUGIN"] == "ofi"
    assert "NCCL_NET_PLUGIN=ofi" in why(cluster, "variables")
    theirs = detect(job(tmp_path), {"NCCL_NET_PLUGIN": "none"}, system=machine.system())
    assert "NCCL_NET_PLUGIN" not in theirs.env


def test_nothing_the_user_set_is_changed(tmp_path: Path, machine: Machine) -> None:
    machine.file("dev/infiniband/uverbs0")
    theirs = {"NCCL_SOCKET_IFNAME": "eth9", "FI_EFA_USE_HUGE_PAGE": "1", "NCCL_HOSTID": ""}
    cluster = detect(job(tmp_path), theirs, system=machine.system())
    assert cluster.env == {"GLOO_SOCKET_IFNAME": "eth0"}
    assert "left as you set them: NCCL_HOSTID, NCCL_SOCKET_IFNAME, FI_EFA_USE_HUGE_PAGE" in why(cluster, "variables")


def test_detecting_imports_neither_torch_nor_nvml_where_there_is_no_driver(tmp_path: Path, machine: Machine) -> None:
    job(tmp_path)
    code = f"""
import pathlib, sys
from moorage.cluster import System, detect
from moorage.contract.config import JobConfig
system = System(root=pathlib.Path({str(machine.root)!r}))
detect(JobConfig.read({{"SAGEMAKER_BASE_DIR": {str(tmp_path / "ml")!r}}}), {{}}, system=system)
print(*sorted({{"torch", "pynvml", "boto3", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
