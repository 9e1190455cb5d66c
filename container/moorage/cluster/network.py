"""The network interface between the hosts, verified, and the variables that tell NCCL, gloo and libfabric about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moorage.cluster.reasons import Reason
from moorage.cluster.system import System

EFA_PLUGIN = "opt/amazon/ofi-nccl/lib/libnccl-net-ofi.so"
"""Where AWS's installer puts the part of NCCL that speaks to EFA."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """interface: a name under /sys/class/net; empty where none was found, which leaves the choice to the libraries.

    efa: number of EFA devices. plugin: whether NCCL has what it takes to use them.
    """

    interface: str
    efa: int
    plugin: bool
    reasons: tuple[Reason, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Route:
    interface: str
    network: ipaddress.IPv4Network
    metric: int


def look(system: System, *, given: str, host: str, num_hosts: int) -> Network:
    """given: network_interface_name of resourceconfig.json, which can name an interface that is not there: SageMaker's
    local mode (SDK v3) writes `ethwe` where the interface is `eth0`.
    """
    there = system.names("sys/class/net", "*")
    warnings: tuple[str, ...] = ()
    wrong = _trouble(system, given, there)
    if not wrong:
        interface, why = given, "network_interface_name, and it exists"
    else:
        interface, why = _own(system, there, host, num_hosts)
        why = f"{why}; {wrong}"
        if not interface and num_hosts > 1:
            warnings = (f"no network interface found for {host}: {why}; NCCL and gloo choose for themselves",)
    efa = len(system.names("dev/infiniband", "uverbs*"))
    return Network(
        interface=interface,
        efa=efa,
        plugin=system.exists(EFA_PLUGIN),
        reasons=(
            Reason(what="network", value=interface or "none", why=why),
            Reason(
                what="efa",
                value=f"{efa} devices" if efa else "none",
                why="/dev/infiniband/uverbs*" if efa else "no /dev/infiniband/uverbs*",
            ),
        ),
        warnings=warnings,
    )


def variables(
    network: Network, *, host: str, interfaces: tuple[str, ...], env: Mapping[str, str]
) -> tuple[dict[str, str], Reason]:
    """What to add to `env`; nothing the user set there is changed.

    NCCL_HOSTID: some hosts return one same gethostname() everywhere, and NCCL would take them for one host.
    NCCL_NET_PLUGIN: the container flavour of aws-ofi-nccl goes without the name that NCCL looks for by itself.
    FI_EFA_USE_HUGE_PAGE=0: huge pages break fork, and DataLoader workers are forked (libfabric >= 1.18 and
    aws-ofi-nccl >= 1.7 need no other advice).
    """
    wanted = {"NCCL_HOSTID": host}
    if network.interface:
        # NCCL takes the name for a prefix unless it begins with "=".
        ambiguous = any(name.startswith(network.interface) and name != network.interface for name in interfaces)
        wanted["NCCL_SOCKET_IFNAME"] = "=" * ambiguous + network.interface
        wanted["GLOO_SOCKET_IFNAME"] = network.interface
    if network.efa:
        wanted["FI_EFA_USE_HUGE_PAGE"] = "0"
        if network.plugin:
            wanted["NCCL_NET_PLUGIN"] = "ofi"
    added = {key: value for key, value in wanted.items() if key not in env}
    yours = [key for key in wanted if key in env]
    why = " ".join(f"{key}={value}" for key, value in added.items())
    if yours:
        why = f"{why}; left as you set them: {', '.join(yours)}".lstrip("; ")
    return added, Reason(what="variables", value=f"{len(added)} added", why=why)


def unused_efa(network: Network, env: Mapping[str, str]) -> tuple[str, ...]:
    """For hosts whose ranks speak NCCL to one another: a warning where that is over TCP, beside idle EFA devices."""
    if not network.efa or network.plugin or "NCCL_NET_PLUGIN" in env:
        return ()
    return (
        f"{network.efa} EFA devices are here, but not /{EFA_PLUGIN}: NCCL may use slower TCP between hosts. "
        "Build the image with EFA=1, or set NCCL_NET_PLUGIN for a plugin of your own",
    )


def _trouble(system: System, name: str, there: tuple[str, ...]) -> str:
    if not name:
        return "network_interface_name is not given"
    if name not in there:
        return f"network_interface_name {name!r} is not in /sys/class/net"
    if system.text(f"sys/class/net/{name}/operstate") == "down":
        return f"network_interface_name {name!r} is down"
    return ""


def _own(system: System, there: tuple[str, ...], host: str, num_hosts: int) -> tuple[str, str]:
    # A look-up can block for seconds, so it is made only where the other hosts will need the answer too.
    routes = [route for route in _routes(system) if route.interface in there]
    if num_hosts > 1:
        found = _by_address(system, routes, host)
        if found[0]:
            return found
    defaults = sorted((r for r in routes if r.network.prefixlen == 0), key=lambda route: route.metric)
    if defaults:
        return defaults[0].interface, "it carries the default route"
    if num_hosts == 1 and "lo" in there:
        return "lo", "one host without a default route"
    return "", "no interface carries the default route or this host's address"


def _by_address(system: System, routes: list[_Route], host: str) -> tuple[str, str]:
    try:
        answers = system.resolve(host, None)
    except (OSError, UnicodeError):
        return "", ""
    for answer in answers:
        try:
            address = ipaddress.ip_address(answer[4][0])
        except ValueError:  # an IPv6 address with a zone
            continue
        if address.is_loopback and str(address) == host:
            return "lo", f"{host} is a loopback address"
        near = [r for r in routes if r.network.prefixlen and address.version == 4 and address in r.network]
        if near:
            return max(near, key=lambda r: r.network.prefixlen).interface, f"{host} is {address}, on its network"
    return "", ""


def _routes(system: System) -> Iterator[_Route]:
    """IPv4 routes that are up, from /proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric Mask ..."""
    for line in (system.text("proc/net/route") or "").splitlines()[1:]:
        words = line.split()
        if len(words) < 8 or not int(words[3], 16) & 1:  # RTF_UP
            continue
        network = ipaddress.IPv4Network((_address(words[1]), str(_address(words[7]))), strict=False)
        yield _Route(words[0], network, int(words[6]))


def _address(little_endian: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bytes.fromhex(little_endian)[::-1])
