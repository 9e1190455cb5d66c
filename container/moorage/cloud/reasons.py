"""What the platform's own words for an end mean, and what to do: FailureReason and the statuses that have none.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeTrainingJob.html has the statuses; the words of
the reasons are the platform's, as users report them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = "docs/troubleshooting.md"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """text: the platform's words, or the program's. section: of docs/troubleshooting.md."""

    text: str
    means: str
    fix: str
    section: str

    @property
    def lines(self) -> Iterator[str]:
        yield from (f"  {line}" for line in self.text.splitlines())
        yield f"  that is: {self.means}"
        yield f"  fix: {self.fix}"
        yield f"  see {PAGE}#{self.section}"


@dataclass(frozen=True, kw_only=True)
class _Known:
    words: str
    means: str
    fix: str
    section: str = "what-the-platform-says"

    def reason(self, text: str) -> Reason:
        return Reason(text=text, means=self.means, fix=self.fix, section=self.section)


_KNOWN = (
    _Known(
        words=r"CapacityError|InsufficientCapacity|Unable to provision",
        means="AWS has no such instances free in this region, or on Spot",
        fix="wait longer (--max-wait), take another instance type, region or subnets in more zones, or --no-spot",
    ),
    _Known(
        words=r"ResourceLimitExceeded|service limit",
        means="the account's quota for this instance type is used up",
        fix="ask for more in Service Quotas; quotas of training, Spot training and warm pools are separate",
    ),
    _Known(
        words=r"No S3 objects found|NoSuchKey|does not match any S3",
        means="a channel's S3Uri names nothing",
        fix="`aws s3 ls` of that URI; a prefix wants its last / where a file of that name exists too",
    ),
    _Known(
        words=r"CannotPullContainer|Cannot pull|failed to pull|image.*(not found|does not exist)",
        means="the platform cannot pull the image",
        fix="push it to the job's region, and let the role pull it (docs/iam.md); name it by digest",
    ),
    _Known(
        words=r"AccessDenied|Access Denied|not authorized|403",
        means="the job's role may not do this",
        fix="allow it to the role, not to yourself; docs/iam.md has its policy. KMS keys have policies too",
    ),
    _Known(
        words=r"No space left|disk is full|ENOSPC",
        means="the volume of the instances is full",
        fix="a larger --volume-gb; `keep` fewer checkpoints, or checkpoint_s3; FastFile instead of File mode",
    ),
    _Known(
        words=r"(upload|Upload).*(fail|error)|ArtifactUpload",
        means="what the job left could not be put into S3",
        fix="let the role write to output and checkpoints; --uncompressed for a model of tens of GB",
    ),
    _Known(
        words=r"InternalServerError|internal error",
        means="something of AWS broke, not of the job",
        fix="submit it again under the same --checkpoint-name, and it goes on; --retries has the platform do so",
    ),
)  # fmt: skip
_ENDS = {
    "MaxRuntimeExceeded": _Known(
        words="", means="it trained longer than --max-run", section="stop",
        fix="submit it again under the same --checkpoint-name with a longer --max-run: it goes on where it stopped",
    ),
    "MaxWaitTimeExceeded": _Known(
        words="", means="it waited for Spot instances and trained for longer than --max-wait", section="stop",
        fix="submit it again under the same --checkpoint-name with a longer --max-wait, or --no-spot",
    ),
}  # fmt: skip
_SECTIONS = {
    "78": "configuration", "66": "program", "65": "requirements", "69": "hosts", "74": "checkpoints", "73": "model",
    "75": "hangs-and-slow-hosts", "137": "stop",
}  # fmt: skip
"""Exit codes of `train`."""

_CODE = re.compile(r"exit code:? ?(\d+)", re.IGNORECASE)


def reason_of(text: str, secondary: str) -> Reason | None:
    """None where there is nothing to explain. text: FailureReason. secondary: SecondaryStatus."""
    if not text:
        found = _ENDS.get(secondary)
        return found.reason(secondary) if found else None
    code = _CODE.search(text)
    if text.startswith("AlgorithmError") or (code and not text.startswith(("ClientError", "InternalServerError"))):
        number = code[1] if code else ""
        return Reason(
            text=text, means=f"the program, or `train`, ended{f' with {number}' if number else ' by itself'}",
            fix="`moorage logs JOB --tail 100` has what it said last; `moorage run` rehearses it here",
            section=_SECTIONS.get(number, "a-rank-failed"),
        )  # fmt: skip
    for known in _KNOWN:
        if re.search(known.words, text):
            return known.reason(text)
    return Reason(
        text=text, means="the platform's own words", fix="`moorage logs JOB --tail 100` has what came before",
        section="aws",
    )  # fmt: skip
