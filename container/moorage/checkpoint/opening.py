"""Which storage a job's settings ask for. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from moorage.checkpoint.storage import Disk, Storage
from moorage.contract.config import JobConfig
from moorage.contract.s3 import Address, client_options


def open_storage(config: JobConfig, env: Mapping[str, str]) -> Storage:
    """Nothing is asked of it yet. Raises CheckpointError where no client of S3 can be made."""
    address = Address.parse(config.settings.checkpoint_s3)
    if address is None:
        return Disk(config.checkpoint_folder)
    if config.is_trial:
        address = Address(bucket=address.bucket, prefix=address.key(config.name))
    return open_s3(address, env, config.sagemaker, owner=config.settings.checkpoint_s3_owner)


def open_s3(address: Address, env: Mapping[str, str], sagemaker: Mapping[str, str], *, owner: str = "") -> Storage:
    """sagemaker: the job's sagemaker_* hyperparameters. owner: the account of the bucket, empty for any."""
    from moorage.checkpoint.s3.bucket import Bucket
    from moorage.checkpoint.s3.storage import S3

    return S3(Bucket(address, client_options(env, sagemaker), owner=owner))
