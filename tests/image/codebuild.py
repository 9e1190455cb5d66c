"""AWS CodeBuild as far as buildspec.yml uses it: phases and their commands, on this machine.

https://docs.aws.amazon.com/codebuild/latest/userguide/build-spec-ref.html and view-build-details-phases.html: the
commands of a phase run in one shell and end at the first that fails; a failed install or pre_build ends the build;
after a failed build post_build still runs, with CODEBUILD_BUILD_SUCCEEDING=0.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PHASES = ("install", "pre_build", "build", "post_build")

# As version 0.2 has it: what one command exports, and where it changes to, holds for the next.
_IN_ONE_SHELL = 'for command in "$@"; do echo "[Container] Running command $command" >&2; eval "$command" || exit; done'


def buildspec(source: Path) -> dict[str, Any]:
    return dict(YAML(typ="safe").load((source / "buildspec.yml").read_text(encoding="utf-8")))


@dataclass(kw_only=True)
class CodeBuild:
    """One build of a source folder. env: what the project sets, over the buildspec's own defaults."""

    source: Path
    env: Mapping[str, str]
    codes: dict[str, int] = field(default_factory=dict)
    """Exit code of each phase that ran."""
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def succeeding(self) -> bool:
        return not any(self.codes.values())

    @property
    def log(self) -> str:
        return "".join(self.logs.values())

    def run(self, phases: Sequence[str] = PHASES, **env: str) -> CodeBuild:
        """The phases, as far as the build goes. env: over that of the build."""
        spec = buildspec(self.source)
        for name in phases:
            if not self.succeeding and name != "post_build":
                continue
            if any(self.codes.get(early) for early in ("install", "pre_build")):
                continue
            ran = subprocess.run(
                [spec["env"]["shell"], "-c", _IN_ONE_SHELL, "codebuild", *spec["phases"][name]["commands"]],
                cwd=self.source,
                env={
                    **{key: str(value) for key, value in spec["env"]["variables"].items()}, **self.env, **env,
                    "CODEBUILD_BUILD_SUCCEEDING": str(int(self.succeeding)), "CODEBUILD_SRC_DIR": str(self.source),
                },
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
            self.codes[name], self.logs[name] = ran.returncode, ran.stdout.decode("utf-8", "replace")
        return self
