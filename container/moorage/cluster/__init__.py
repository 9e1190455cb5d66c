"""The hosts, devices, memory and network this job woke up with, each with the reason."""
