"""`moorage serve` and `moorage predict`: a model on this machine, and a question to it, or to an endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from moorage.cli.help import command
from moorage.errors import CloudError, ConfigError, EngineError

PANEL = "Serving"
TYPES = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".npy": "application/x-npy",
    ".jsonl": "application/jsonlines",
}


def add(app: typer.Typer) -> None:
    command(
        app,
        serve,
        PANEL,
        [
            "moorage serve --local model/",
            "moorage serve --local runs/digits-2026-01-31-12-00-00-123456/model.tar.gz --port 9000",
            "moorage serve --local model/ --image moorage:cpu -e MOORAGE_MAX_BATCH_SIZE=32",
        ],
        codes={"72": "the model cannot be loaded"},
    )
    command(
        app,
        predict,
        PANEL,
        [
            """moorage predict '{"instances": [[1, 2, 3]]}'""",
            "moorage predict @body.json --url http://127.0.0.1:9000",
            "moorage predict @images.npy --accept application/x-npy -o scores.npy",
            "moorage predict @body.json --endpoint digits",
        ],
        codes={"1": "it was answered with an error, which is printed"},
    )


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder, or its model.tar.gz.")],
    *,
    local: Annotated[bool, typer.Option("--local", help="On this machine, which is also the default.")] = True,
    image: Annotated[
        str | None, typer.Option("--image", "-i", metavar="IMAGE", help="In a container of it; else as a process.")
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="On 127.0.0.1.")] = 8080,
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="One environment variable.")
    ] = None,
) -> None:
    """Answer with a model on this machine, as the endpoint would: `serve` itself, the model read-only.

    Ctrl-C ends it as the platform does: accepted requests are answered first.
    """
    with ExitStack() as stack:
        folder = _folder(model, stack)
        given = dict(_pair(text) for text in env or ())
        if image is None:
            argv = [sys.executable, "-P", "-m", "moorage.serving.main", str(folder)]
            environ = {**os.environ, **given, "SAGEMAKER_BIND_TO_PORT": str(port)}
        else:
            variables = [f"--env={name}={value}" for name, value in given.items()]
            mount = f"--volume={folder}:/opt/ml/model:ro"
            argv = ["docker", "run", "--rm", f"--publish=127.0.0.1:{port}:8080", mount, *variables, image, "serve"]
            environ = {**os.environ}
        print(f"moorage: POST http://127.0.0.1:{port}/invocations, or: moorage predict @body.json"
              + (f" --url http://127.0.0.1:{port}" if port != 8080 else ""), file=sys.stderr)  # fmt: skip
        raise typer.Exit(_run(argv, environ))


def _folder(model: Path, stack: ExitStack) -> Path:
    """Unpacked where it is an archive, until the command ends."""
    if model.is_dir():
        return model.absolute()
    if not model.is_file():
        raise ConfigError(f"there is no model {model}", fix="name the model folder of a job, or its model.tar.gz")
    from moorage.contract.archive import extract

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="moorage-model-")))
    extract(model, folder)
    folder.chmod(0o755)
    return folder


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name:
        raise ConfigError(f"--env {text!r} names no variable", fix="write NAME=VALUE, or NAME for that of your shell")
    return name, value if sign else os.environ.get(name, "")


def _run(argv: list[str], environ: dict[str, str]) -> int:
    """Its exit code. A signal for us is meant for it."""
    try:
        process = subprocess.Popen(argv, env=environ)
    except FileNotFoundError:
        raise EngineError(f"there is no {argv[0]} on the PATH", fix="install docker, or leave --image out") from None
    # Ctrl-C reaches it by itself, being in the same group.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    return process.wait()


def predict(
    body: Annotated[str, typer.Argument(metavar="BODY", help="What to send: the text itself, @FILE, or - for stdin.")],
    *,
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Of a server on this machine.")] = (
        "http://127.0.0.1:8080"
    ),
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="NAME", help="An endpoint of SageMaker instead.")
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option("--content-type", metavar="TYPE", help="Of the body; else by the file's name, or JSON."),
    ] = None,
    accept: Annotated[str, typer.Option("--accept", metavar="TYPE", help="Of the answer.")] = "application/json",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the answer there.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")] = 60.0,
    wait: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for a server that is still loading its model.")
    ] = 0.0,
) -> None:
    """Ask a model, and print its answer."""
    data = _body(body)
    kind = (
        content_type or (TYPES.get(Path(body[1:]).suffix.lower()) if body.startswith("@") else None) or TYPES[".json"]
    )
    if endpoint is not None:
        status, answer = _ask_endpoint(endpoint, data, kind, accept)
    else:
        if wait:
            _wait(url, wait)
        status, answer = _ask(url, data, kind, accept, timeout)
    if output is not None and status < 400:
        output.write_bytes(answer)
    else:
        is_text = accept != TYPES[".npy"]
        sys.stdout.buffer.write(answer + b"\n" if is_text and not answer.endswith(b"\n") else answer)
        sys.stdout.flush()
    if status >= 400:
        print(f"moorage: answered {status}", file=sys.stderr)
        raise typer.Exit(1)


def _body(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    if not text.startswith("@"):
        return text.encode()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise ConfigError(f"the body {text[1:]} cannot be read", why=str(error.strerror), fix="name another") from None


def _connection(url: str, timeout: float) -> tuple[Any, str]:
    """And the path that `url` names, if any."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url} is no URL", fix="write http://HOST:PORT")
    connect: Any = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return connect(parts.hostname, parts.port, timeout=timeout), parts.path if parts.path not in ("", "/") else ""


def _wait(url: str, seconds: float) -> None:
    """Until /ping says 200, or the time is over: then the question itself will say why not."""
    import http.client

    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        connection, _ = _connection(url, 5.0)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)


def _ask(url: str, data: bytes, kind: str, accept: str, timeout: float) -> tuple[int, bytes]:
    import http.client

    connection, path = _connection(url, timeout)
    path = path or "/invocations"
    try:
        connection.request("POST", path, data, {"Content-Type": kind, "Accept": accept})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise CloudError(
            f"{url} does not answer", why=str(error) or type(error).__name__,
            fix="start a server by `moorage serve --local MODEL_DIR`, or name another by --url",
        ) from None  # fmt: skip
    finally:
        connection.close()


def _ask_endpoint(name: str, data: bytes, kind: str, accept: str) -> tuple[int, bytes]:
    from moorage.cloud.aws import aws_errors, client

    runtime = client("sagemaker-runtime", os.environ)
    with aws_errors(f"cannot ask the endpoint {name}", allow="sagemaker:InvokeEndpoint"):
        try:
            answer = runtime.invoke_endpoint(EndpointName=name, Body=data, ContentType=kind, Accept=accept)
        except runtime.exceptions.ModelError as error:
            # The model's own answer, with its status.
            return int(error.response.get("OriginalStatusCode", 500)), str(
                error.response.get("OriginalMessage", error)
            ).encode()
        return 200, answer["Body"].read()
