"""A real registry on loopback, Debian's docker-registry, for as long as a test lasts; and ECR made of it and of moto.

ECR has two halves: the registry that images are pushed to, and the API of AWS. Here the first is docker-registry with
ECR's user and password, the second is moto's server; what is pushed to the first is made known to the second, as ECR
does by itself, by the registry's notifications.
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from aws import aws_server
from support import free_port, wait_until

REGION = "eu-west-1"
USER, PASSWORD = "AWS", "123456789012-auth-token"
"""What moto's GetAuthorizationToken gives; the registry stores it as bcrypt, which is all that htpasswd may hold."""
_HTPASSWD = "AWS:$2b$04$moorageregistryuserteeJV5Rfrw/wZdkK22lSqIas1dHT7dSvFO\n"

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """host: as images in it are called, localhost:PORT, which engines reach without TLS."""

    host: str
    log: Path
    auth: str = ""

    def get(self, path: str) -> tuple[bytes, str]:
        """The body and the digest that the registry answers."""
        request = urllib.request.Request(f"http://{self.host}/v2/{path}", headers={"Accept": _MANIFEST})
        if self.auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(self.auth.encode()).decode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read(), answer.headers.get("Docker-Content-Digest", "")

    def tags(self, repository: str) -> list[str]:
        """Its tags; none when nothing was ever pushed to it."""
        try:
            return sorted(json.loads(self.get(f"{repository}/tags/list")[0])["tags"] or [])
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == 404, error
            return []

    def digest(self, repository: str, tag: str) -> str:
        return self.get(f"{repository}/manifests/{tag}")[1]


Pushed = Callable[[str, str, str], None]


@contextlib.contextmanager
def registry(folder: Path, *, auth: bool = False, on_push: Pushed | None = None) -> Iterator[Registry]:
    """Runs in `folder`. auth: wants USER and PASSWORD. on_push: is told repository, tag and digest, in a thread."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("a registry to push to: apt-get install docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config: dict[str, Any] = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of this test"},
    }
    if auth:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    with contextlib.ExitStack() as stack:
        if on_push:
            url = stack.enter_context(_listening(on_push))
            config["notifications"] = {
                "endpoints": [{"name": "test", "url": url, "timeout": "5s", "threshold": 5, "backoff": "1s"}]
            }
        # JSON is YAML.
        (folder / "config.yml").write_text(json.dumps(config))
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        stack.callback(_ended, process)
        made = Registry(host=f"localhost:{port}", log=folder / "log", auth=f"{USER}:{PASSWORD}" if auth else "")
        wait_until(lambda: process.poll() is not None or _answers(made), what="an answer of docker-registry")
        assert process.poll() is None, made.log.read_text()
        yield made


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def _answers(made: Registry) -> bool:
    try:
        return made.get("")[0] == b"{}"
    except OSError:
        return False


@contextlib.contextmanager
def _listening(on_push: Pushed) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for event in body["events"]:
                if event["action"] == "push" and event["target"].get("tag"):
                    on_push(event["target"]["repository"], event["target"]["tag"], event["target"]["digest"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True, kw_only=True)
class EcrServer:
    """ECR of one account, in REGION. env: for commands that are to use it."""

    registry: Registry
    endpoint: str
    client: Any = field(repr=False)

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "hunter22",
            "ECR_HOST": self.registry.host,
        }

    def scan_says(self, repository: str, tag: str, findings: list[dict[str, Any]], status: str = "COMPLETE") -> None:
        """What the next scan of an image finds. Without it: moto's own, CVE-9999-9999 of moto_fake, HIGH."""
        result = {
            "repositoryName": repository,
            "imageId": {"imageTag": tag},
            "imageScanStatus": {"status": status, "description": f"it is {status}"},
            "imageScanFindings": {"findings": findings},
        }
        self.tell("static/ecr/scan-finding-results", json.dumps({"results": [result], "region": REGION}))

    def tell(self, path: str, body: str) -> None:
        """Moto's own API: https://docs.getmoto.org/en/latest/docs/server_mode.html"""
        kind = {"Content-Type": "application/json" if body.startswith("{") else "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{path}", data=body.encode(), headers=kind)
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def ecr_server(folder: Path) -> Iterator[EcrServer]:
    """Images that are pushed to its registry become known to its API, and are scanned, a moment later."""
    made: EcrServer

    def known(repository: str, tag: str, digest: str) -> None:
        # Of a test that pushed here without ECR. An error would have the registry say it again, and nothing after it.
        if repository not in {one["repositoryName"] for one in client.describe_repositories()["repositories"]}:
            return
        manifest = made.registry.get(f"{repository}/manifests/{digest}")[0].decode()
        client.put_image(repositoryName=repository, imageManifest=manifest, imageTag=tag, imageDigest=digest)
        client.start_image_scan(repositoryName=repository, imageId={"imageDigest": digest})

    with aws_server() as endpoint:
        client = boto3.client(
            "ecr", endpoint_url=endpoint, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
        )
        with contextlib.closing(client), registry(folder, auth=True, on_push=known) as images:
            made = EcrServer(registry=images, endpoint=endpoint, client=client)
            made.tell("reset", "")
            yield made
