"""`moorage plan`: the sums, the instance data, prices, and what is advised."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import torch
from safetensors.torch import save_file

from aws import called
from moorage.cli import main
from moorage.cloud import instances
from moorage.cloud.instances import Price, parse_prices
from moorage.cloud.plan import Plan, Work, advice, options, saves
from moorage.cloud.sizes import of_folder, of_numbers, parse_amount, parse_share, pick
from moorage.errors import CloudError, ConfigError
from moorage.training.strategy import choose
from platform_api import Platform, platform

DAY = 86_400.0
SEVEN = of_numbers(7 * 10**9, trainable=7 * 10**9, dtype="fp32")


def plans(name: str, size: Any = SEVEN, *, prices: Any = None, work: Any = None, between: float = DAY) -> Any:
    (found,) = options(
        size, [instances.known()[name]], precision="bf16", optimizer_states=2, work=work or Work(), prices=prices or {},
        between=between,
    )  # fmt: skip
    return found


# The data


def test_every_instance_type_is_one_that_trains() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    types = set(model.shape_for("TrainingInstanceType").enum)
    assert len(instances.known()) > 30 and instances.known().keys() <= types
    for one in instances.known().values():
        assert one.gpus in (1, 2, 4, 8) and 2**30 * 16 <= one.gpu_memory <= 2**30 * 288 and one.memory >= 2**30 * 16
    data = json.loads((Path(instances.__file__).parent / "instances.json").read_text())
    assert data["read"] == instances.read() and all("https://" in source for source in data["sources"])


# The sums


def test_the_fewest_hosts_on_which_the_ranks_own_choice_fits() -> None:
    found = plans("ml.g5.12xlarge")
    assert (found.hosts, found.choice.strategy, found.devices) == (2, "fsdp", 8)
    alone = choose(
        "auto", SEVEN, precision="bf16", device_memory=24 * 2**30, world_size=4, ranks_per_host=4
    )  # fmt: skip
    assert not alone.fits
    assert plans("ml.g5.xlarge", of_numbers(10**8, trainable=10**8, dtype="fp32")).choice.strategy == "single"
    assert plans("ml.g4dn.xlarge", of_numbers(10**12, trainable=10**12, dtype="fp32")).hosts == 0


def test_time_and_cost_and_what_interruptions_add() -> None:
    work, prices = Work(samples=3_600_000, rate=125.0), {"ml.p4d.24xlarge": Price(on_demand=20.0, spot=10.0)}
    found = plans("ml.p4d.24xlarge", work=work, prices=prices)
    assert found.hours == pytest.approx(1.0)  # 8 devices of 125 samples a second
    assert found.on_demand == pytest.approx(20.0)
    lost = saves(SEVEN, 2, DAY, 1).loss
    assert 0.005 < lost < 0.05 and found.spot == pytest.approx(10.0 / (1 - lost))
    assert plans("ml.p4d.24xlarge", work=work, prices=prices, between=3600.0).spot > found.spot


def test_a_checkpoint_s_size_and_interval_by_young_and_daly() -> None:
    found = saves(SEVEN, 2, DAY, 1)
    assert found.size == 84 * 10**9 and found.seconds == pytest.approx(84.0)
    assert 0.8 < found.interval / (2 * found.cost * DAY) ** 0.5 < 1.1
    frequent = saves(SEVEN, 2, 1800.0, 1)
    assert frequent.interval < found.interval and frequent.loss > 5 * found.loss
    assert saves(SEVEN, 2, DAY, 4).seconds == pytest.approx(21.0)


def test_only_what_is_trained_has_optimizer_state() -> None:
    adapters = of_numbers(7 * 10**9, trainable=7 * 10**7, dtype="bf16")
    assert saves(adapters, 2, DAY, 1).size == 14 * 10**9 + 2 * 14 * 10**7
    assert plans("ml.g5.12xlarge", adapters).hosts == 1


# What is advised


def advised(found: Any, size: Any = SEVEN, between: float = DAY) -> list[str]:
    made = Plan(
        name="a model", size=size, precision="bf16", options=(found,), between=between, work=Work(), read="",
        saves=saves(size, 2, between, max(1, found.hosts)),
    )  # fmt: skip
    return list(advice(made, found))


def test_three_lines_with_the_reason() -> None:
    prices = {"ml.p4d.24xlarge": Price(on_demand=20.0, spot=10.0)}
    long = advised(plans("ml.p4d.24xlarge", work=Work(samples=1e9, rate=10.0), prices=prices))
    assert [line.partition(":")[2].split()[0].rstrip(",") for line in long] == ["right", "no", "no"]
    dear = {"ml.p4d.24xlarge": Price(on_demand=20.0, spot=19.9)}
    wrong = advised(plans("ml.p4d.24xlarge", work=Work(samples=1e9, rate=10.0), prices=dear))
    assert wrong[0].startswith("Spot: wrong")
    short = advised(plans("ml.p4d.24xlarge", work=Work(samples=1e4, rate=10.0)))
    assert short[1].startswith("warm pool: right")
    adapters = of_numbers(7 * 10**9, trainable=7 * 10**7, dtype="bf16")
    assert "look at it first" in advised(plans("ml.g5.12xlarge", adapters), adapters)[2]
    assert advised(plans("ml.p4d.24xlarge", between=400.0), between=400.0)[0].startswith("Spot: wrong")


# How large a model is


@pytest.mark.parametrize(("text", "count"), [("7b", 7 * 10**9), ("350M", 350 * 10**6), ("7e9", 7 * 10**9), ("12", 12)])
def test_amounts(text: str, count: int) -> None:
    assert parse_amount(text, "--params") == count


@pytest.mark.parametrize("text", ["", "seven", "-7b", "0", "7x"])
def test_no_amounts(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number above 0"):
        parse_amount(text, "--params")


def test_shares() -> None:
    assert parse_share("2%", 1000) == 20 and parse_share("7", 1000) == 7 and parse_share("100%", 9) == 9
    for text in ("0%", "101%", "x%"):
        with pytest.raises(ConfigError, match="is no share"):
            parse_share(text, 10)


def test_of_a_model_folder_only_the_headers_are_read(tmp_path: Path) -> None:
    tensors = {"embed.weight": torch.zeros(10, 4), "layers.0.w": torch.zeros(8, 8), "layers.1.w": torch.zeros(8, 8)}
    save_file({"a": torch.zeros(6, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    save_file(tensors, tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate((tmp_path / "a.safetensors").stat().st_size - 8)  # never read
    size = of_folder(tmp_path, trainable="50%")
    assert (size.num_params, size.param_bytes, size.trainable_params) == (174, 168 * 4 + 12, 87)
    assert size.group_params == 64
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        of_folder(tmp_path, trainable="100%")
    with pytest.raises(ConfigError, match="there is no model in"):
        of_folder(tmp_path / "nothing", trainable="100%")


def test_a_program_is_run_until_it_has_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "width").write_text("32")
    (tmp_path / "train.py").write_text(
        "import moorage, torch\n"
        "run = moorage.start()\n"
        "hp = run.hyperparameters(layers=1)\n"
        "width = int((run.channel('train') / 'width').read_text())\n"
        "model = run.parallelize(torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(hp.layers)]))\n"
        "raise SystemError('never comes here')\n"
    )
    monkeypatch.chdir(tmp_path)
    argv = ["plan", "train.py", "-p", "layers=3", "--data", "train=data", "--instance-types", "ml.g5.xlarge", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 3 * (32 * 32 + 32) and found["name"] == "the model of train.py"
    (tmp_path / "train.py").write_text("print('nothing here')\n")
    assert main(["plan", "train.py"]) == 66
    assert "ended before it gave its model to run.parallelize" in capsys.readouterr().err


# Prices


def test_prices_that_are_given() -> None:
    assert parse_prices(["ml.g5.xlarge=1.41:0.55", "ml.p5.48xlarge=60"]) == {
        "ml.g5.xlarge": Price(on_demand=1.41, spot=0.55), "ml.p5.48xlarge": Price(on_demand=60.0),
    }  # fmt: skip
    for text in ("ml.g5.xlarge", "ml.g5.xlarge=dear", "ml.g5.xlarge=0", "ml.g5.xlarge=1:-1"):
        with pytest.raises(ConfigError, match="--price"):
            parse_prices([text])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    with platform() as made:
        called(monkeypatch, made.endpoint)
        yield made


def test_prices_of_the_price_list(told: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "1.4080000000"}}
    product = {"terms": {"OnDemand": {"a.b": {"priceDimensions": {"a.b.c": dimension}}}}}
    told.answers["AWSPriceListService.GetProducts"] = lambda body: {
        "PriceList": [json.dumps(product)] if body["Filters"][0]["Value"] == "ml.g5.xlarge" else []
    }
    argv = [
        "plan",
        "--params",
        "100m",
        "--instance-types",
        "ml.g5",
        "--samples",
        "1m",
        "--rate",
        "100",
        "--fetch-prices",
    ]
    assert main(argv) == 78
    assert "--fetch-prices wants a region" in capsys.readouterr().err
    assert main([*argv, "--region", "eu-central-1"]) == 0
    out = capsys.readouterr().out
    assert "1 x ml.g5.xlarge" in out.splitlines()[3] and "$3.91" in out.splitlines()[3], "the one with a price first"
    asked = [body for operation, body in told.bodies if operation.endswith("GetProducts")]
    assert {one["Field"]: one["Value"] for one in asked[0]["Filters"]}["regionCode"] == "eu-central-1"
    told.answers["AWSPriceListService.GetProducts"] = lambda _: {"PriceList": []}
    with pytest.raises(CloudError, match="has no training prices for"):
        instances.fetch_prices(["ml.g5.xlarge"], "eu-central-1", os.environ)


# The command


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "--params", "7b", "--instance-types", "ml.p4d", "--samples", "10m", "--rate", "3"]
    assert main([*argv, "--price", "ml.p4d.24xlarge=25:10"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a model: 7 billion parameters, 28 GB, in bf16\n")
    assert "1 x ml.p4d.24xlarge  8 x A100 40 GiB  fsdp" in out
    assert "fsdp over 8 ranks needs 14.3 GiB per device (parameters 3.3 GiB + gradients 3.3 GiB" in out
    assert "a checkpoint has 84 GB" in out and "10 million samples at 3 per second and device" in out


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 78
    assert "there is nothing to plan for" in capsys.readouterr().err
    assert main(["plan", "--params", "7b", "--instance-types", "ml.none"]) == 78
    assert "the instance type ml.none is not in the data" in capsys.readouterr().err
    assert pick(["ml.p5"], ["ml.p5.48xlarge", "ml.p5e.48xlarge"]) == ["ml.p5.48xlarge"]
