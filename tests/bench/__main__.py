"""python -m bench [NAME ...]: measure, print the table, write build/bench/<name>.json."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from bench import harness, image, loop, many_ranks, pause, rehearsal, restore, serving, start, write
from bench.harness import Absent, PeerFailed, Row, table

BENCHMARKS: dict[str, Callable[[], list[Row]]] = {
    "start": start.measure,
    "loop": loop.measure,
    "pause": pause.measure,
    "pause-large": pause.measure_large,
    "write": write.measure,
    "restore": restore.measure,
    "many-ranks": many_ranks.measure,
    "image": image.measure,
    "rehearsal": rehearsal.measure,
    "serving": serving.measure,
}


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    rows: list[Row] = []
    failed = 0
    for name in names or BENCHMARKS:
        print(f"{name}: {(sys.modules[BENCHMARKS[name].__module__].__doc__ or '').splitlines()[0]}", file=sys.stderr)
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
        harness.write(name, measured)
        rows += measured
    if rows:
        print(table(rows))
    return failed


def stop(*_: object) -> None:
    """Contenders are ended on the way out, also when somebody stops the benchmark, even twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(main(sys.argv[1:]))
