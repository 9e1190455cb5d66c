"""The last save of a job that was asked to stop: whole before the grace ends, or not begun."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from moorage.training.ranks import Ranks
from moorage.training.saving import Saver

log = logging.getLogger("moorage")

LEAVE_SECONDS = 5.0
"""Before the end of the grace no save is waited for any more; a fifth of it where it is short."""

UNWIND_SECONDS = 2.5
"""That Python may take to end in the usual way, on a busy host; with less than that left a rank leaves at once."""

_HASTE = 1.2
"""The last save waits for nothing behind it, yet the ranks now all write at once: some more than the longest so far."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """kept: step of the newest checkpoint, None when there is none. late: the ranks are to leave at once, since a save
    is still under way on one of them, or there is no time to end in the usual way.
    """

    kept: int | None
    late: bool


def save_in_time(saver: Saver, ranks: Ranks, save: Callable[[], None], *, step: int, grace: float, ends: float) -> Left:
    """Save the state of `step` where that can end in time on every rank; else keep the last checkpoint, and say so.
    Collective. grace: seconds. ends: when it does, as time.monotonic().

    What a save takes is known from those before: the longest of the last ones counts. Where there was none, it is
    tried. A save that is under way is waited for until shortly before the end, and no longer: what is unfinished on the
    disk then is no checkpoint, since it has no manifest.
    """
    deadline = ends - min(LEAVE_SECONDS, grace / 5)
    drained = saver.drain(deadline)
    needed, left = saver.cadence.longest * _HASTE, max(0.0, deadline - time.monotonic())
    fits = saver.kept == step or (drained and needed <= left)
    # One answer for all: a save needs every rank.
    if not ranks.sums([float(not fits)])[0]:
        log.info("asked to stop: saving at step %d", step)
        save()
        drained = saver.drain(deadline)
        reason = "the save failed" if drained else "its save did not end before the grace did"
    elif not drained:
        reason = "the save before it did not end before the grace did"
    elif fits:
        reason = "another rank has no time for it in what is left of the grace"
    else:
        reason = f"a save takes about {needed:.1f} s, and {left:.1f} s of the grace are left"
    if saver.kept != step and saver.tracks_anything and ranks.place.rank == 0:
        _say(step, saver.kept, reason)
    late = not drained or time.monotonic() > ends - UNWIND_SECONDS
    return Left(kept=saver.kept, late=bool(ranks.sums([float(late)])[0]))


def _say(step: int, kept: int | None, reason: str) -> None:
    rest = (
        "there is no checkpoint: all of it is lost"
        if kept is None
        else f"the checkpoint of step {kept} is kept, {step - kept} steps are lost"
    )
    log.warning("step %d is not saved: %s; %s", step, reason, rest)
