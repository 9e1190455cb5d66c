"""python -m bench [start|loop|pause|image ...]: measure, print the table, write build/bench/<name>.json."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from bench import image, loop, pause, start
from bench.harness import Absent, PeerFailed, Row, table, write

BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "start": start.measure,
    "loop": loop.measure,
    "pause": pause.measure,
    "image": image.measure,
}


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed = 0
    for name in names or BENCHMARKS:
        print(f"{name}: {(sys.modules[f'bench.{name}'].__doc__ or '').splitlines()[0]}", file=sys.stderr)
        try:
            measured = BENCHMARKS[name]()
        except PeerFailed as error:
            print(f"{name} was not measured: {error}", file=sys.stderr)
            failed = 1
            continue
        except Absent as error:
            print(f"{name} was left out: {error}", file=sys.stderr)
            failed |= name in names
            continue
        write(name, measured)
        rows += measured
    if rows:
        print(table(rows))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
