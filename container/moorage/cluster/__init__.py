"""The hosts, devices, memory and network a job woke up in, each with the reason."""

from moorage.cluster.hosts import wait_for_hosts

__all__ = ["wait_for_hosts"]
