"""What a push, and `make scan`, ask ECR: whose registry, which repository, what a tag holds, what a scan found."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moorage.cloud import aws
from moorage.cloud.aws import aws_errors

MANIFESTS = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
]

_HOST = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.(amazonaws\.com|on\.aws)(\.[a-z]+)?"
)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """An ECR repository. uri: host and name, as images in it are called."""

    account: str
    region: str
    name: str
    uri: str
    immutable: bool
    scans_on_push: bool


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a tag holds. config: the digest of the image's configuration, which an engine calls the image's id."""

    digest: str
    config: str


def parse_host(host: str) -> tuple[str, str] | None:
    """Account and region of an ECR registry's host name; None for that of another registry."""
    match = _HOST.fullmatch(host)
    return (match["account"], match["region"]) if match else None


class Ecr:
    """One account's registry in one region. Every method raises CloudError where AWS refuses or is not reached."""

    def __init__(self, env: Mapping[str, str], *, account: str = "", region: str = "") -> None:
        """account, region: by default those of the credentials and of the AWS configuration."""
        self._client = aws.client("ecr", env, region or None)
        self.region = str(self._client.meta.region_name)
        self.account = account or aws.account(env, self.region)

    def repository(self, name: str) -> Repository | None:
        """The repository, or None when there is none of that name."""
        with aws_errors(f"cannot look up the ECR repository {name!r}", allow="ecr:DescribeRepositories"):
            try:
                answer = self._client.describe_repositories(registryId=self.account, repositoryNames=[name])
            except self._client.exceptions.RepositoryNotFoundException:
                return None
        return self._repository(answer["repositories"][0])

    def create(self, name: str, *, kms_key: str = "") -> Repository:
        """Make the repository: tags immutable, scanned on push, encrypted by AES-256 or by `kms_key`, an ARN."""
        encryption = {"encryptionType": "KMS", "kmsKey": kms_key} if kms_key else {"encryptionType": "AES256"}
        with aws_errors(f"cannot create the ECR repository {name!r}", allow="ecr:CreateRepository"):
            answer = self._client.create_repository(
                registryId=self.account,
                repositoryName=name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
                encryptionConfiguration=encryption,
            )
        return self._repository(answer["repository"])

    def login(self) -> dict[str, str]:
        """User and password of the registry, valid for 12 hours. To be handed to the engine only."""
        with aws_errors("cannot get a password of ECR", allow="ecr:GetAuthorizationToken"):
            answer = self._client.get_authorization_token()
        token = base64.b64decode(answer["authorizationData"][0]["authorizationToken"]).decode()
        user, _, password = token.partition(":")
        return {"username": user, "password": password}

    def held(self, repository: str, tag: str) -> Held | None:
        """What `tag` holds, or None where it is free."""
        with aws_errors(f"cannot look up {repository}:{tag}", allow="ecr:BatchGetImage"):
            answer = self._client.batch_get_image(
                registryId=self.account,
                repositoryName=repository,
                imageIds=[{"imageTag": tag}],
                acceptedMediaTypes=MANIFESTS,
            )
        for image in answer["images"]:
            manifest = json.loads(image["imageManifest"])
            return Held(digest=image["imageId"]["imageDigest"], config=manifest.get("config", {}).get("digest", ""))
        return None

    def start_scan(self, repository: str, digest: str) -> None:
        """Have a pushed image scanned, where its repository does not do so by itself. Harmless when it was today."""
        what = f"cannot scan {repository}@{digest}"
        already = self._client.exceptions.LimitExceededException
        with aws_errors(what, allow="ecr:StartImageScan"), contextlib.suppress(already):
            self._client.start_image_scan(
                registryId=self.account, repositoryName=repository, imageId={"imageDigest": digest}
            )

    def scan(self, repository: str, digest: str) -> dict[str, Any]:
        """The answer of DescribeImageScanFindings, its pages as one; {} when there is no scan, or not yet."""
        asked: dict[str, Any] = {
            "registryId": self.account, "repositoryName": repository, "imageId": {"imageDigest": digest}
        }  # fmt: skip
        found: dict[str, list[Any]] = {"findings": [], "enhancedFindings": []}
        with aws_errors(f"cannot read the findings of {repository}@{digest}", allow="ecr:DescribeImageScanFindings"):
            while True:
                try:
                    answer = self._client.describe_image_scan_findings(**asked)
                except (self._client.exceptions.ScanNotFoundException, self._client.exceptions.ImageNotFoundException):
                    return {}
                for name in found:
                    found[name] += answer.get("imageScanFindings", {}).get(name, [])
                if "nextToken" not in answer:
                    return {"imageScanStatus": answer.get("imageScanStatus", {}), "imageScanFindings": found}
                asked["nextToken"] = answer["nextToken"]

    def _repository(self, answer: dict[str, Any]) -> Repository:
        return Repository(
            account=self.account,
            region=self.region,
            name=answer["repositoryName"],
            uri=answer["repositoryUri"],
            immutable=answer["imageTagMutability"].startswith("IMMUTABLE"),
            scans_on_push=answer["imageScanningConfiguration"]["scanOnPush"],
        )
