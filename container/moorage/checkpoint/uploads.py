"""What the platform's upload agent has done, read off the marks it leaves beside the files. No torch here.

It puts `X.sagemaker-uploading` beside a file X when it begins and `X.sagemaker-uploaded` when X is in S3. Nothing says
in which order it takes the files, nor how soon, and what is deleted here it deletes in S3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from moorage.checkpoint.layout import MANIFEST, UPLOADED, UPLOADING, is_data_name
from moorage.checkpoint.storage import Seen

Listing = Mapping[str, float]
"""The names in a checkpoint's folder, each with the time of its last change in seconds since 1970."""


def times(listing: Mapping[str, Seen]) -> Listing:
    """What the marks are told by."""
    return {name: seen.changed for name, seen in listing.items()}


def has_marks(names: Iterable[str]) -> bool:
    """Whether an agent has been at work here."""
    return any(name.endswith((UPLOADING, UPLOADED)) for name in names)


def waiting(names: Listing) -> dict[str, float]:
    """The files of a checkpoint that are not in S3 as they are here, each with the time since when.

    A mark older than its file is that of another file of the same name, from an attempt before this one.
    """
    return {
        name: changed
        for name, changed in names.items()
        if (is_data_name(name) or name == MANIFEST) and names.get(name + UPLOADED, float("-inf")) < changed
    }


def is_uploaded(names: Listing) -> bool:
    """Whether all that this folder holds of a committed checkpoint is in S3."""
    return MANIFEST in names and not waiting(names)


class Lag:
    """Says that the agent falls behind: when a file has waited for `bound` seconds, twice, four times as long, ...

    bound: 0 never says it.
    """

    def __init__(self, bound: float, log: logging.Logger) -> None:
        self._bound, self._next, self._log = bound, bound, log

    def tell(self, file: str, seconds: float) -> None:
        """file: the one that has waited longest, empty when none waits. seconds: since when."""
        if not file or seconds < self._bound:
            self._next = self._bound
        elif self._bound and seconds >= self._next:
            while self._next <= seconds:
                self._next *= 2
            self._log.warning(
                "the upload of checkpoints falls behind: %s has waited for %.0f minutes; an interruption now would go "
                "back to an older checkpoint. Save less often, or see whether the job's role may write to the prefix",
                file, seconds / 60,
            )  # fmt: skip
