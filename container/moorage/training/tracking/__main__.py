"""The job has failed: end its run in MLflow. Called by its supervisor, which gives the reason on standard input."""

from __future__ import annotations

import logging
import os
import sys

from moorage.contract.config import JobConfig
from moorage.training.tracking import record_failure

logging.basicConfig(format="%(message)s", level=logging.WARNING)
record_failure(JobConfig.read(os.environ), os.environ, sys.stdin.read())
