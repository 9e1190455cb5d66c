"""The program's requirements.txt: installed once per host, before any rank starts, and never over torch."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import xxhash

from moorage.contract.secrets import SHORTEST, known_secrets, redact
from moorage.errors import RequirementsError

log = logging.getLogger("moorage")

FILE = "requirements.txt"
STAMP = "moorage-requirements"

_INCLUDED = re.compile(r"(?:-r|-c|--requirement|--constraint)[\s=]*(?P<file>\S.*)")
_LOCAL = re.compile(r"-e\b|--editable\b|\.|/|file:|[^\s#]*@\s*file:")
_TORCH_FILE = re.compile(r"(?:\S*/)?torch-\d\S*\.(?:whl|tar\.gz|zip)\b")
_CREDENTIALS = re.compile(r"://([^\s/]+)@")
_NOT_WRITABLE = re.compile(r"OSError: \[Errno \d+\] (?:Permission denied|Read-only file system)")
_NO_NETWORK = re.compile(
    r"NewConnectionError|Network is unreachable|Temporary failure in name resolution|Name or service not known"
    r"|No address associated with hostname|ConnectTimeout|Read timed out|Connection refused|No route to host"
)


@dataclass(frozen=True, kw_only=True)
class _Line:
    file: Path
    number: int
    text: str


def install(code: Path, env: Mapping[str, str], *, python: str = sys.executable) -> bool:
    """Install requirements.txt of the folder `code`, if it has one; whether pip was run.

    torch stays as it is: a line that asks for another is refused. A second call does nothing as long as the file and
    the installed packages are the same. Whatever interrupts the wait for pip (the exception of a signal handler) ends
    pip as well. Raises RequirementsError with pip's own last lines.
    """
    file = code / FILE
    lines = list(_lines(file)) if file.is_file() else []
    if not lines:
        return False
    torch = torch_version()
    if torch:
        _refuse_other_torch(lines, torch)
    site = _site_packages(python)
    with _stamp(site) as stamp:
        if stamp and _read(stamp) == _state(lines, site):
            log.info("%s is installed already", file)
            return False
        log.info("installing %s", file)
        _run_pip(file, lines, env, python, torch)
        # What lies in a folder can change without a word of it in the file.
        if stamp and not any(_LOCAL.match(line.text) for line in lines):
            _write(stamp, _state(lines, site))
    return True


def torch_version() -> str:
    """The installed version of torch, without importing it; "" if there is none."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _lines(file: Path, seen: frozenset[Path] = frozenset()) -> Iterator[_Line]:
    """The lines that say something, those of included files too; what cannot be included is left to pip to report."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequirementsError(f"cannot read {file}", why=str(error), fix="save it as UTF-8 text") from None
    number, joined = 0, ""
    for number, part in enumerate(text.splitlines(), start=1):
        joined += part.removesuffix("\\")
        if part.endswith("\\"):
            continue
        line, joined = re.sub(r"(^|\s)#.*$", "", joined).strip(), ""
        if not line:
            continue
        yield _Line(file=file, number=number, text=line)
        included = _INCLUDED.match(line)
        other = file.parent / included["file"].strip() if included else file
        if other not in seen | {file} and other.is_file():
            yield from _lines(other, seen | {file})


def _refuse_other_torch(lines: Iterable[_Line], installed: str) -> None:
    # Imported here: most programs have no requirements.
    from packaging.requirements import InvalidRequirement, Requirement

    for line in lines:
        try:
            wanted = Requirement(re.split(r"\s--", line.text)[0])
        except InvalidRequirement:
            other = bool(_TORCH_FILE.match(line.text))
        else:
            applies = wanted.marker is None or wanted.marker.evaluate()
            fits = not wanted.url and wanted.specifier.contains(installed, prereleases=True)
            other = wanted.name.lower() == "torch" and applies and not fits
        if other:
            raise RequirementsError(
                f"{line.file}, line {line.number}: {redact(line.text)!r} would change torch, which is {installed} here",
                why="the image's torch fits its CUDA and the packages built against it, so it is not replaced",
                fix="remove the line, or allow this version, or build an image FROM this one with the torch you need",
            )


def _run_pip(file: Path, lines: Sequence[_Line], env: Mapping[str, str], python: str, torch: str) -> None:
    secrets = _secrets(env, lines)
    output: list[str] = []
    command = [python, "-m", "pip", "install", "--requirement", str(file), "--constraint", "/dev/stdin"]
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--root-user-action", "ignore"]
    with _process([*command, *options], file.parent, env, f"torch=={torch}\n" if torch else "") as pip:
        assert pip.stdout is not None
        for raw in pip.stdout:
            line = redact(raw.rstrip(), secrets)
            output.append(line)
            known = line.startswith(("Requirement already satisfied", "Looking in"))
            log.log(logging.DEBUG if known else logging.INFO, "pip: %s", line)
        code = pip.wait()
    if code:
        raise _failed(file, code, output, torch)


@contextlib.contextmanager
def _process(command: Sequence[str], cwd: Path, env: Mapping[str, str], text: str) -> Iterator[subprocess.Popen[str]]:
    """A process with `text` on its standard input, which does not outlive this block.

    In the caller's process group, so that whoever kills that kills it too.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={**env, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdin is not None and process.stdout is not None
    with process.stdout:
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(text)
            yield process
        finally:
            if process.poll() is None:
                _kill_tree(process.pid)
            process.wait()


def _kill_tree(pid: int) -> None:
    """SIGKILL: pip has nothing to save, and Python dies of SIGTERM without cleaning up just the same."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for child in children:
        _kill_tree(int(child))


def _failed(file: Path, code: int, output: Sequence[str], torch: str) -> RequirementsError:
    text = "\n".join(output)
    fix = "correct requirements.txt; the whole output of pip is in the log"
    if "No module named pip" in text:
        fix = "install pip into the image, or bake the program's packages into it"
    elif "torch==" in text and "conflict" in text:
        fix = f"one of the packages needs another torch than {torch}, which stays: choose a version that allows it"
    elif _NOT_WRITABLE.search(text):
        fix = (
            "this container's user cannot change its packages, or its root is read-only: bake the packages into an "
            "image FROM this one, or run without --user and --read-only"
        )
    elif _NO_NETWORK.search(text):
        fix = (
            "nothing can be downloaded under network isolation: bake the packages into the image, or give their wheels "
            "as a channel, with PIP_NO_INDEX=1 and PIP_FIND_LINKS=/opt/ml/input/data/CHANNEL"
        )
    what = f"cannot install {file}: pip ended with code {code}"
    return RequirementsError(what, why=f"pip says: {_last_words(output)}", fix=fix)


def _last_words(output: Sequence[str]) -> str:
    """What pip says is wrong, in the few lines that a failure file has room for."""
    conflict = "The conflict is caused by:"
    if conflict in output:
        start = output.index(conflict) + 1
        lines = list(itertools.takewhile(str.strip, output[start:]))
    else:
        lines = [line for line in output if line.lower().startswith("error")] or [line for line in output if line]
    return " | ".join(line.strip() for line in lines[-3:])


def _secrets(env: Mapping[str, str], lines: Iterable[_Line]) -> tuple[str, ...]:
    """The host's secrets, and the passwords in addresses of package indexes."""
    texts = [*(value for key, value in env.items() if key.startswith("PIP_")), *(line.text for line in lines)]
    given = [match for text in texts for match in _CREDENTIALS.findall(text)]
    passwords = [user_password.partition(":")[2] or user_password for user_password in given]
    found = {form for password in passwords for form in (password, unquote(password)) if len(form) >= SHORTEST}
    return (*known_secrets(env), *sorted(found, key=len, reverse=True))


def _site_packages(python: str) -> Path:
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip())


@contextlib.contextmanager
def _stamp(site: Path) -> Iterator[Path | None]:
    """The file that says what was installed last, locked: two hosts on one machine may share the packages."""
    path = site / STAMP
    try:
        file = path.open("a")
    except OSError as error:
        log.info("requirements will be installed anew at each start: cannot write %s: %s", path, error.strerror)
        yield None
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("requirements will be installed anew at the next start: %s: %s", path, error.strerror)


def _state(lines: Iterable[_Line], site: Path) -> str:
    """What is asked for and what is there, in one hash."""
    digest = xxhash.xxh3_128()
    for text in (*(line.text for line in lines), "", *sorted(path.name for path in site.glob("*.dist-info"))):
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()
