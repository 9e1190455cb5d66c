"""The hosts, devices, memory and network a job woke up in, each with the reason."""

from moorage.cluster.cluster import Cluster, detect
from moorage.cluster.devices import Devices
from moorage.cluster.reasons import Reason
from moorage.cluster.system import System

__all__ = ["Cluster", "Devices", "Reason", "System", "detect"]
