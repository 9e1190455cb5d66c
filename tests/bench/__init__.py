"""Benchmarks against the tools people use today, all measured in one run on one machine.

    make bench                 all of them
    make bench ARGS=start      one: start, loop, pause, pause-large, write, restore, many-ranks or image

Never part of the tests: a ratio depends on what else the machine does. A target that is missed is shown as missed.
"""
