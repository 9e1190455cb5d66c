"""What stands for the S3 prefix of a CheckpointConfig: a folder, or a prefix in S3. Objects are whole or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from moorage.contract.s3 import Address, client_options
from moorage.errors import ConfigError, EngineError

CHUNK = 2**18
Passed = Callable[[int], None]
"""Told of bytes as they pass; it may wait, and raise `Cut`."""


class Cut(Exception):
    """The upload is broken off here."""


class Prefix(Protocol):
    """Keys are relative, with slashes."""

    def keys(self) -> dict[str, int]:
        """Each with its size in bytes."""

    def put(self, source: Path, key: str, passed: Passed) -> None:
        """Raises FileNotFoundError where the source goes while it is read; nothing of it is seen then."""

    def get(self, key: str, target: Path) -> None: ...

    def delete(self, key: str) -> None: ...

    def close(self) -> None: ...


def opened(where: Path | str, env: Mapping[str, str]) -> Prefix:
    """A folder is made. Raises ConfigError and EngineError."""
    if isinstance(where, Path) or "://" not in where:
        return FolderPrefix(Path(where))
    address = Address.parse(where)
    if address is None:
        raise ConfigError(
            f"the checkpoint prefix {where!r} is not an address in S3", fix="give s3://BUCKET/PREFIX, or a folder"
        )
    return S3Prefix(address, env)


class FolderPrefix:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Beside it, on the same file system: what is half here must not be seen in it.
            self._parts = Path(tempfile.mkdtemp(prefix=f".{folder.name}-parts-", dir=self._folder.parent))
        except OSError as error:
            raise ConfigError(
                f"the checkpoint prefix {folder} cannot be written", why=str(error.strerror), fix="name another folder"
            ) from None

    def keys(self) -> dict[str, int]:
        found = {}
        for parent, _, names in os.walk(self._folder):
            for name in names:
                path = Path(parent, name)
                # An agent of another host may delete it between the two.
                with contextlib.suppress(FileNotFoundError):
                    found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
        return found

    def put(self, source: Path, key: str, passed: Passed) -> None:
        descriptor, part = tempfile.mkstemp(dir=self._parts)
        try:
            with source.open("rb") as reading, os.fdopen(descriptor, "wb") as writing:
                while data := reading.read(CHUNK):
                    passed(len(data))
                    writing.write(data)
            Path(part).chmod(0o644)
            target = self._folder / key
            while True:
                target.parent.mkdir(parents=True, exist_ok=True)
                # Another host's agent may just have removed the folder with its last file.
                with contextlib.suppress(FileNotFoundError):
                    Path(part).rename(target)
                    return
        finally:
            Path(part).unlink(missing_ok=True)

    def get(self, key: str, target: Path) -> None:
        shutil.copyfile(self._folder / key, target)

    def delete(self, key: str) -> None:
        path = self._folder / key
        path.unlink(missing_ok=True)
        # S3 knows no empty folder.
        for parent in PurePosixPath(key).parents:
            if str(parent) == ".":
                return
            try:
                (self._folder / parent).rmdir()
            except OSError:
                return

    def close(self) -> None:
        shutil.rmtree(self._parts, ignore_errors=True)


class S3Prefix:
    """Through boto3, whose clients may be shared by threads."""

    def __init__(self, address: Address, env: Mapping[str, str]) -> None:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError

        self._address, self._errors = address, (BotoCoreError, ClientError)
        self._client: Any = boto3.client("s3", **client_options(env, {}))
        with self._said("use"):
            self._client.head_bucket(Bucket=address.bucket)

    @contextlib.contextmanager
    def _said(self, what: str) -> Any:
        try:
            yield
        except self._errors as error:
            raise EngineError(
                f"cannot {what} the checkpoint prefix {self._address}",
                why=str(error),
                fix="see that the bucket exists and that the credentials of this shell may use it",
            ) from None

    def keys(self) -> dict[str, int]:
        with self._said("list"):
            start = f"{self._address.prefix}/" if self._address.prefix else ""
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._address.bucket, Prefix=start)
            return {
                item["Key"].removeprefix(start): item["Size"]
                for page in pages
                for item in page.get("Contents", ())
                if not item["Key"].endswith("/")
            }

    def put(self, source: Path, key: str, passed: Passed) -> None:
        with self._said("write to"), source.open("rb") as file:
            self._client.upload_fileobj(
                _Passing(file, passed), self._address.bucket, self._address.key(key), Config=self._in_order()
            )

    def _in_order(self) -> Any:
        from boto3.s3.transfer import TransferConfig

        # In this thread: what `passed` raises is to come out of `put`.
        return TransferConfig(use_threads=False)

    def get(self, key: str, target: Path) -> None:
        with self._said("read"):
            self._client.download_file(self._address.bucket, self._address.key(key), str(target))

    def delete(self, key: str) -> None:
        with self._said("delete from"):
            self._client.delete_object(Bucket=self._address.bucket, Key=self._address.key(key))

    def close(self) -> None:
        self._client.close()


class _Passing:
    """A file that tells what is read of it."""

    def __init__(self, file: Any, passed: Passed) -> None:
        self._file, self._passed = file, passed

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        self._passed(len(data))
        return data
