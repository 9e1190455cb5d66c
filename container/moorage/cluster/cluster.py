"""The cluster a job woke up in: detected on each host, completed when the hosts have told one another their ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moorage.cluster import devices as devices_of
from moorage.cluster import host as host_of
from moorage.cluster import network as network_of
from moorage.cluster.devices import Devices
from moorage.cluster.reasons import Reason, aligned
from moorage.cluster.system import MACHINE, System
from moorage.contract.config import InstanceGroup, JobConfig
from moorage.errors import ClusterError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What was found, with the reasons.

    hosts: sorted. num_cpus, memory and shm (bytes; 0 is not known): what this container may use of its host.
    network_interface: verified; empty where none was found. efa: number of EFA devices.
    ranks: how many each host runs; until `with_ranks`, every host is taken to be like this one.
    env: variables to add for NCCL, gloo and EFA; none that the user set.
    warnings: what will probably go wrong, one sentence each.
    """

    hosts: tuple[str, ...]
    current_host: str
    instance_type: str
    current_group: str
    instance_groups: tuple[InstanceGroup, ...]
    devices: Devices
    num_cpus: int
    memory: int
    shm: int
    network_interface: str
    efa: int
    ranks: Mapping[str, int]
    env: Mapping[str, str]
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]

    @property
    def host_rank(self) -> int:
        return self.hosts.index(self.current_host)

    @property
    def num_hosts(self) -> int:
        return len(self.hosts)

    @property
    def ranks_per_host(self) -> int:
        """Ranks of this host."""
        return self.ranks[self.current_host]

    @property
    def first_rank(self) -> int:
        """Global rank of this host's local rank 0."""
        return sum(self.ranks[host] for host in self.hosts[: self.host_rank])

    @property
    def world_size(self) -> int:
        return sum(self.ranks[host] for host in self.hosts)

    def with_ranks(self, per_host: Mapping[str, int]) -> Cluster:
        """The same, with what every host said it runs. Raises ClusterError when a host is missing or runs none."""
        absent = [host for host in self.hosts if per_host.get(host, 0) < 1]
        if absent:
            raise ClusterError(
                f"no ranks are known for {', '.join(absent)}", why="every host of the job runs one at least"
            )
        ranks = MappingProxyType({host: per_host[host] for host in self.hosts})
        same = len(set(ranks.values())) == 1
        why = "the same on every host" if same else ", ".join(f"{host}: {number}" for host, number in ranks.items())
        world = Reason(what="world size", value=str(sum(ranks.values())), why=why)
        kept = tuple(reason for reason in self.reasons if reason.what != world.what)
        return dataclasses.replace(self, ranks=ranks, reasons=(*kept, world))

    def describe(self) -> str:
        """One short block: what was found, and why, a line each."""
        return aligned(self.reasons)


def detect(config: JobConfig, env: Mapping[str, str], *, system: System = MACHINE) -> Cluster:
    """Look at this host. env: the environment the ranks will inherit.

    Raises ConfigError when more ranks are asked for than there are GPUs.
    """
    host = host_of.look(system)
    devices, devices_why, devices_warn = devices_of.look(
        system, env, instance_type=config.instance_type, memory=host.memory
    )
    network = network_of.look(
        system, given=config.network_interface, host=config.current_host, num_hosts=len(config.hosts)
    )
    added, added_why = network_of.variables(
        network, host=config.current_host, interfaces=system.names("sys/class/net", "*"), env=env
    )
    efa_warn = network_of.unused_efa(network, env) if devices.kind == "cuda" and len(config.hosts) > 1 else ()
    ranks, ranks_why, ranks_warn = _ranks(config, devices)
    return Cluster(
        hosts=config.hosts,
        current_host=config.current_host,
        instance_type=config.instance_type,
        current_group=config.current_group,
        instance_groups=config.instance_groups,
        devices=devices,
        num_cpus=host.num_cpus,
        memory=host.memory,
        shm=host.shm,
        network_interface=network.interface,
        efa=network.efa,
        ranks=MappingProxyType(dict.fromkeys(config.hosts, ranks)),
        env=MappingProxyType(added),
        reasons=(_host_reason(config), *devices_why, ranks_why, *host.reasons, *network.reasons, added_why),
        warnings=(*devices_warn, *ranks_warn, *host.warnings, *network.warnings, *efa_warn),
    )


def _host_reason(config: JobConfig) -> Reason:
    group = f", group {config.current_group}" if config.current_group else ""
    return Reason(
        what="host",
        value=f"{config.current_host}, {config.host_rank + 1} of {len(config.hosts)}",
        why=f"resourceconfig.json: {config.instance_type}{group}",
    )


def _ranks(config: JobConfig, devices: Devices) -> tuple[int, Reason, tuple[str, ...]]:
    asked = config.settings.ranks_per_host
    if not asked:
        why = "one, for there is only a CPU" if devices.kind == "cpu" else f"one per {devices.kind} device"
        return devices.count, Reason(what="ranks", value=f"{devices.count} on this host", why=why), ()
    if devices.kind == "cuda" and asked > devices.count:
        raise ConfigError(
            f"ranks_per_host is {asked}, but {config.current_host} has {devices.count} GPUs",
            why="two ranks cannot share a GPU under NCCL",
            fix=f"set MOORAGE_RANKS_PER_HOST to {devices.count} or less, or to 0 for one per GPU",
        )
    reason = Reason(what="ranks", value=f"{asked} on this host", why="the setting ranks_per_host")
    if devices.kind == "cuda" and asked < devices.count:
        idle = f"ranks_per_host is {asked}: {devices.count - asked} of {devices.count} GPUs stay idle"
        return asked, reason, (idle,)
    return asked, reason, ()
