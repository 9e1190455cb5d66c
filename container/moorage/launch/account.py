"""Where the time of the job went: at its end, in the log and in output/data/goodput.json of the first host."""

from __future__ import annotations

import json
import logging
from contextlib import suppress

from moorage.contract.config import JobConfig
from moorage.contract.goodput import measure
from moorage.contract.ledger import read_ledger
from moorage.errors import describe

FILE = "goodput.json"

logger = logging.getLogger("moorage")


def account(config: JobConfig) -> None:
    """Say and write it, on the first host. Cannot fail: it logs why there is no file."""
    if config.host_rank > 0:
        return
    goodput = measure(read_ledger(config.checkpoint_folder))
    if goodput is None:
        return
    for line in goodput.table():
        logger.info("%s", line)
    path = config.paths.output_data / FILE
    part = path.with_name(f".{FILE}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(goodput.to_json(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        logger.warning("cannot write %s: %s", path, describe(error))
        with suppress(OSError):
            part.unlink(missing_ok=True)
