"""Prints the lock of an image made FROM ours: what requirements.in needs beside what the image holds, with hashes.

It runs in the image (docs/image.md has the command). torch and whatever else is there are constraints: a package that
needs another version of one of them is an error here, and not a broken image later.
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

WANTED = Path(__file__).parent / "requirements.in"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        there, report = Path(folder, "constraints.txt"), Path(folder, "report.json")
        there.write_text("".join(f"{item.name}=={item.version}\n" for item in distributions()))
        options = ["--dry-run", "--only-binary", ":all:", "--constraint", str(there), "--report", str(report)]
        # What pip says goes beside the lock, not into it.
        done = subprocess.run([*PIP, "install", *options, "-r", str(WANTED)], stdout=sys.stderr, check=False)
        if done.returncode:
            return done.returncode
        missing = json.loads(report.read_text())["install"]
    print("# Written by lock.py from requirements.in. Do not edit.")
    for item in sorted(missing, key=lambda item: item["metadata"]["name"]):
        hashes = item["download_info"]["archive_info"]["hashes"]
        print(f"{item['metadata']['name']}=={item['metadata']['version']} \\\n    --hash=sha256:{hashes['sha256']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
