"""A stand-in for the platform's upload agent, as slow as told: `upload_agent.py LOCAL S3 SECONDS SEED`.

Copies each file of LOCAL to S3, in an order of its own, with its marks: X.sagemaker-uploading before, and
X.sagemaker-uploaded after, each copy whole or absent. What is deleted in LOCAL it deletes in S3. SECONDS: for each
file, on average.
Started anew, it uploads again what it had only begun.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from pathlib import Path

IGNORE, UPLOADING, UPLOADED = ".sagemaker-ignore", ".sagemaker-uploading", ".sagemaker-uploaded"


def files(folder: Path) -> list[Path]:
    """Those to upload, relative to the folder, those of the oldest step first."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [(Path(parent) / name).relative_to(folder) for name in names]
    return sorted(path for path in found if not path.name.endswith((IGNORE, UPLOADING, UPLOADED)))


def upload(local: Path, s3: Path, file: Path, seconds: float) -> bool:
    """False when it is deleted just as it is begun. Raises FileNotFoundError when it is deleted later."""
    source, target = local / file, s3 / file
    begun, ended = (source.with_name(source.name + mark) for mark in (UPLOADING, UPLOADED))
    try:
        begun.touch()
    except FileNotFoundError:
        return False
    time.sleep(0.05)  # who looked for the mark a moment before it was there may delete still
    if not source.exists():
        begun.unlink(missing_ok=True)
        return False
    time.sleep(seconds)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = s3.with_name(f"{s3.name}-part-{os.getpid()}")
    shutil.copyfile(source, part)
    part.rename(target)
    ended.touch()
    return True


def main() -> None:
    local, s3 = map(Path, sys.argv[1:3])
    seconds, chance = float(sys.argv[3]), random.Random(sys.argv[4])
    done = {file for file in files(local) if (local / file.parent / (file.name + UPLOADED)).exists()}
    while True:
        here = files(local)
        for gone in done - set(here):
            (s3 / gone).unlink(missing_ok=True)
            done.discard(gone)
        waiting = [file for file in here if file not in done]
        if not waiting:
            time.sleep(0.02)
            continue
        file = waiting[0] if chance.random() < 0.7 else chance.choice(waiting)
        try:
            if upload(local, s3, file, seconds * chance.random() * 2):
                done.add(file)
        except FileNotFoundError:
            print(f"{file} was deleted while it was uploaded", flush=True)
            return


if __name__ == "__main__":
    main()
