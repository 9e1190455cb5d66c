"""The choice of a strategy, on made-up models and devices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import ConfigError
from moorage.training.strategy import STATE_FRACTION, Choice, ModelSize, choose

GIB = 2**30


def model(billions: float, *, trainable: float = 1.0, blocks: int = 32) -> ModelSize:
    num_params = int(billions * 1e9)
    return ModelSize(
        num_params=num_params,
        param_bytes=4 * num_params,
        trainable_params=int(num_params * trainable),
        group_params=num_params // blocks,
    )


def chosen(size: ModelSize, memory: float, world_size: int, ranks_per_host: int, **options: object) -> Choice:
    request = str(options.pop("request", "auto"))
    precision = str(options.pop("precision", "fp32"))
    return choose(
        request, size, precision=precision, device_memory=int(memory * GIB), world_size=world_size,
        ranks_per_host=ranks_per_host, **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "memory", "world_size", "ranks_per_host", "expected"),
    [
        (model(0.1), 24, 1, 1, ("single", 1)),
        (model(0.1), 24, 8, 8, ("ddp", 1)),
        (model(0.1), 24, 16, 8, ("ddp", 1)),
        (model(1.3), 24, 8, 8, ("fsdp", 8)),  # 20.8 GB of state, one host: nothing to replicate across
        (model(1.3), 24, 16, 8, ("hsdp", 8)),
        (model(7), 80, 16, 8, ("hsdp", 8)),  # 112 GB over 8 fits in 48
        (model(30), 80, 16, 8, ("fsdp", 16)),  # 480 GB over 8 does not
        (model(7), 80, 16, 1, ("fsdp", 16)),  # one device a host: no sharding within
        (model(7, trainable=0.01), 80, 8, 8, ("ddp", 1)),  # 28 GB, and hardly anything to train
    ],
)
def test_auto_takes_the_least_sharding_that_fits(
    size: ModelSize, memory: float, world_size: int, ranks_per_host: int, expected: tuple[str, int]
) -> None:
    choice = chosen(size, memory, world_size, ranks_per_host)
    assert (choice.strategy, choice.shard_size) == expected
    assert choice.fits


def test_the_reason_holds_the_sum() -> None:
    choice = chosen(model(1.3), 24, 16, 8)
    assert choice.why == (
        "auto: ddp needs 19.4 GiB per device (parameters 4.8 GiB + gradients 4.8 GiB + optimizer 9.7 GiB); "
        "hsdp over 8 ranks needs 2.9 GiB per device (parameters 619.9 MiB + gradients 619.9 MiB + optimizer 1.2 GiB + "
        "gathered blocks 464.9 MiB), within the 14.4 GiB that are 60% of a device's 24.0 GiB, the rest kept for "
        "activations"
    )


def test_low_precision_counts_its_copies_under_ddp_and_halves_what_is_gathered() -> None:
    assert "bf16 copies 2.4 GiB" in chosen(model(1.3), 80, 8, 8, precision="bf16").why
    assert "gathered blocks 232.5 MiB" in chosen(model(1.3), 24, 16, 8, precision="bf16").why


def test_what_fits_nowhere_says_so_and_takes_fsdp() -> None:
    choice = chosen(model(100), 24, 16, 8)
    assert (choice.strategy, choice.shard_size, choice.fits) == ("fsdp", 16, False)
    assert "none fits" in choice.why and "14.4 GiB" in choice.why


def test_one_device_that_is_too_small_says_so() -> None:
    choice = chosen(model(7), 24, 1, 1)
    assert (choice.strategy, choice.fits) == ("single", False)


@pytest.mark.parametrize(
    ("request_", "world_size", "ranks_per_host", "shard_size", "expected"),
    [
        ("single", 1, 1, 0, ("single", 1)),
        ("ddp", 1, 1, 0, ("single", 1)),
        ("fsdp", 1, 1, 0, ("single", 1)),
        ("ddp", 4, 2, 0, ("ddp", 1)),
        ("fsdp", 4, 2, 0, ("fsdp", 4)),
        ("hsdp", 4, 2, 0, ("hsdp", 2)),
        ("hsdp", 8, 2, 4, ("hsdp", 4)),
        ("hsdp", 4, 4, 0, ("fsdp", 4)),
    ],
)
def test_a_strategy_asked_for_is_taken(
    request_: str, world_size: int, ranks_per_host: int, shard_size: int, expected: tuple[str, int]
) -> None:
    choice = chosen(model(100), 1, world_size, ranks_per_host, request=request_, shard_size=shard_size)
    assert (choice.strategy, choice.shard_size) == expected


@pytest.mark.parametrize(
    ("request_", "world_size", "ranks_per_host", "shard_size", "message"),
    [
        ("single", 2, 2, 0, "strategy=single cannot serve 2 ranks"),
        ("hsdp", 4, 1, 0, "strategy=hsdp cannot spread a copy of the model over 1 of 4 ranks"),
        ("hsdp", 4, 2, 3, "shard_size=3 does not divide the 4 ranks"),
        ("hsdp", 5, 2, 0, "over 2 of 5 ranks"),
        ("auto", 8, 8, 3, "shard_size=3 does not divide the 8 ranks"),
        ("zero", 2, 2, 0, "strategy='zero' is not known"),
    ],
)
def test_what_the_ranks_cannot_form_is_an_error(
    request_: str, world_size: int, ranks_per_host: int, shard_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(model(1), 80, world_size, ranks_per_host, request=request_, shard_size=shard_size)


SIZES = st.builds(
    lambda num_params, trainable, blocks: ModelSize(
        num_params=num_params,
        param_bytes=4 * num_params,
        trainable_params=int(num_params * trainable),
        group_params=max(1, num_params // blocks),
    ),
    st.integers(1, 10**12), st.floats(0, 1), st.integers(1, 200),
)  # fmt: skip


@given(SIZES, st.integers(1, 16), st.integers(1, 8), st.floats(0.001, 200), st.sampled_from(["fp32", "bf16", "fp16"]))
def test_auto_never_shards_more_than_needed(
    size: ModelSize, hosts: int, ranks_per_host: int, memory: float, precision: str
) -> None:
    """With more memory the choice never shards more; and state that fits a device whole is never sharded."""
    world_size = hosts * ranks_per_host
    choice = chosen(size, memory, world_size, ranks_per_host, precision=precision)
    roomier = chosen(size, memory * 2, world_size, ranks_per_host, precision=precision)
    assert roomier.shard_size <= choice.shard_size
    assert roomier.fits >= choice.fits
    copies = 2 * size.num_params if precision != "fp32" else 0
    state = size.param_bytes + 12 * size.trainable_params + copies
    room = int(memory * GIB) * STATE_FRACTION
    if state <= room * 0.999:
        assert choice.shard_size == 1 and choice.fits
    elif world_size > 1 and state > room * 1.001:
        assert choice.shard_size > 1
