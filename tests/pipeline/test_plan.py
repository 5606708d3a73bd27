from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.plan import plan
from pipeline.plan_job import GivenRates, Machine, PlanJob, count
from pipeline.rates import COMMITTED, Rate, find_rate, read_rates
from tests.bench.rates import write_rates

HOUR = 3600
LABELS = Machine(name="label", kind="g6.2xlarge", cpus=7, gpus=1, gpu="L4", memory_gib=28, most=16, spot=True)
DOWNLOADS = Machine(name="download", cpus=10, memory_gib=28, most=4)


def a_job(**changes: object) -> PlanJob:
    start = PlanJob(
        pairs="1M",
        teacher="glip-l",
        alive=1.0,
        given=GivenRates(download=10.0, label=5.0),
        head=Machine(name="head", cpus=0),
        downloads=DOWNLOADS,
        labels=LABELS,
        trains=Machine(name="train", cpus=95, gpus=8, gpu="A100", memory_gib=640, most=4),
    )
    return replace(start, **changes)


@pytest.mark.parametrize(
    ("text", "number"), [("16M", 16_000_000), ("300k", 300_000), ("1.5m", 1_500_000), ("20_000", 20_000), ("7", 7)]
)
def test_numbers_are_read_as_people_write_them(text: str, number: int) -> None:
    assert count(text, "pairs") == number


@pytest.mark.parametrize("text", ["16x", "", "-3", "M", "1e6"])
def test_what_is_no_number_is_refused_by_its_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"--pairs is .*; give a number such as 16M"):
        count(text, "pairs")


def test_hours_are_work_over_machines_times_their_rate() -> None:
    download, label, *_ = plan(a_job()).stages
    assert label.machines == 16
    assert label.alone_h == pytest.approx(1_000_000 / (16 * 5) / HOUR)
    assert download.alone_h == pytest.approx(1_000_000 / (download.machines * 10 * 10) / HOUR)


def test_no_more_machines_download_than_labelling_can_use() -> None:
    hurried = plan(a_job(given=GivenRates(download=10.0, label=20.0)))
    assert [stage.machines for stage in hurried.stages[:2]] == [4, 16]  # 320/s wanted, 4 x 100/s there
    patient = plan(a_job(given=GivenRates(download=10.0, label=2.0)))
    assert patient.stages[0].machines == 1  # 32/s wanted


def test_the_slower_of_two_streamed_stages_is_the_bottleneck_and_both_last_as_long() -> None:
    starved = plan(a_job(given=GivenRates(download=1.0, label=50.0)))
    assert starved.bottleneck.name == "download"
    assert starved.streaming_h == pytest.approx(1_000_000 / 40 / HOUR)
    assert starved.machine_hours["label"] == pytest.approx(16 * starved.streaming_h)
    assert plan(a_job()).bottleneck.name == "label"


def test_a_deadline_says_how_many_machines_it_takes_even_more_than_there_may_be() -> None:
    made = plan(a_job(within_hours=1.0))
    label = made.stages[1]
    assert label.machines == 56  # a million at 5/s in an hour
    assert label.alone_h <= 1.0
    assert "more than the 16 that the node type allows" in str(made)


def test_dead_addresses_are_fetched_but_neither_labelled_nor_stored() -> None:
    made = plan(a_job(alive=0.5))
    download, label, *_ = made.stages
    assert download.because.startswith("1,000,000 images")
    assert label.because.startswith("500,000 images")
    assert {part.name: part.amount for part in made.traffic}["fetched"] == 500_000 * 70_000


def test_stored_images_are_not_downloaded_and_all_of_them_labelled() -> None:
    made = plan(a_job(stored=True, alive=0.5))
    assert [stage.name for stage in made.stages if stage.machines] == ["label"]
    assert made.stages[0].because.startswith("1,000,000 images")
    assert "fetched" not in {part.name for part in made.traffic}


def test_training_and_trials_come_after_the_stream() -> None:
    made = plan(a_job(steps="1k", trials="100", given=GivenRates(download=10.0, label=5.0, train=2.0, trial=0.01)))
    train, trial = (next(stage for stage in made.stages if stage.name == name) for name in ("train", "trial"))
    assert train.alone_h == pytest.approx(1000 * 64 / (4 * 8 * 2.0) / HOUR)
    assert trial.alone_h == pytest.approx(100 / (16 * 0.01) / HOUR)
    assert made.in_all_h >= made.streaming_h + train.alone_h + trial.alone_h


def test_cost_is_machine_hours_times_prices(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("{label: 1.0, download: 0.5, head: 0.1}", encoding="utf-8")
    made = plan(a_job(prices=prices))
    hours = made.machine_hours
    assert made.cost == pytest.approx(hours["label"] + 0.5 * hours["download"] + 0.1 * hours["head"])
    assert hours["head"] == pytest.approx(made.in_all_h)


def test_without_every_price_hours_are_told_and_no_money(tmp_path: Path) -> None:
    assert plan(a_job()).cost is None
    prices = tmp_path / "prices.yaml"
    prices.write_text("label: 1.0", encoding="utf-8")
    made = plan(a_job(prices=prices))
    assert made.cost is None
    assert "price per hour of download, head" in str(made)


def test_prices_that_are_none_are_refused(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("label: cheap", encoding="utf-8")
    with pytest.raises(ValueError, match="is no table of prices per hour; write"):
        plan(a_job(prices=prices))


def test_a_rate_that_nobody_knows_is_asked_for_and_never_made_up() -> None:
    with pytest.raises(ValueError, match=r"nobody measured label of owl on a gpu; known: .*give --given\.label"):
        plan(a_job(teacher="owl", given=GivenRates(download=1.0)))


def test_every_rate_used_is_told_with_its_origin() -> None:
    made = plan(a_job(given=GivenRates(download=10.0)))
    assert {rate.what: rate.basis for rate in made.used}["download"] == "given"
    label = next(rate for rate in made.used if rate.what == "label")
    assert (label.basis, label.hardware) == ("published", "V100")
    assert "published: V100" in str(made)
    assert any("V100, but the machine's GPU is L4" in doubt for doubt in made.doubts)


def test_a_file_of_rates_comes_before_the_committed_one(tmp_path: Path) -> None:
    own = tmp_path / "rates.yaml"
    own.write_text(
        "- {what: label, model: glip-l, per: gpu, value: 7, unit: images/s, basis: measured, hardware: one L4, "
        "date: 2026-12-01, where: mine}\n",
        encoding="utf-8",
    )
    made = plan(a_job(rates=(own,), given=GivenRates(download=10.0)))
    assert made.stages[1].alone_h == pytest.approx(1_000_000 / (16 * 7) / HOUR)
    assert not any("label" in doubt for doubt in made.doubts)


def test_blocks_too_large_for_the_object_store_are_pointed_out() -> None:
    assert any("fewer rows per block" in doubt for doubt in plan(a_job(rows_per_block=100_000)).doubts)
    assert not any("rows per block" in doubt for doubt in plan(a_job()).doubts)


def test_memory_of_driver_and_checkpoint_grows_with_the_rows(tmp_path: Path) -> None:
    own = tmp_path / "rates.yaml"
    told = ", unit: bytes, basis: measured, hardware: a machine, date: 2026-12-01, where: mine}\n"
    own.write_text(
        f"- {{what: driver-base, per: run, value: 800000000{told}- {{what: driver, per: row, value: 50{told}"
        f"- {{what: checkpoint, per: row, value: 8{told}",
        encoding="utf-8",
    )
    one, ten = (
        {part.name: part.amount for part in plan(a_job(pairs=pairs, rates=(own,))).memory} for pairs in ("1M", "10M")
    )
    assert (one["row checkpoint"], ten["row checkpoint"]) == (8e6, 8e7)
    assert (one["driver"], ten["driver"]) == (8.5e8, 1.3e9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": ""}, "--pairs is missing"),
        ({"teacher": ""}, "--teacher is missing"),
        ({"pairs": "many"}, "--pairs is 'many'"),
        ({"pairs": "0"}, "--pairs is 0; give at least 1"),
        ({"alive": 1.5}, "--alive is 1.5; give a share"),
        ({"prices": Path("prices.yaml")}, "--prices is prices.yaml, a relative path"),
    ],
)
def test_a_mistake_is_told_before_anything_is_reckoned(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        a_job(**changes).check()


def test_committed_rates_are_measured_or_published_and_say_where() -> None:
    rates = read_rates(COMMITTED)
    assert {"download", "label", "train", "trial"} <= {rate.what for rate in rates}
    for rate in rates:
        assert rate.basis in ("measured", "published")
        assert rate.where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label: 3", "is no list of rates"),
        ("- {what: label, speed: 3}", r"a rate has \['speed'\]; allowed"),
        ("- {what: label}", "lacks something"),
        ("- {what: label, value: -1, unit: x, basis: given, where: ''}", "give 0 or more"),
        ("- {what: label, value: 1, unit: x, basis: felt, where: ''}", "basis of the rate of label is 'felt'"),
        ("- {what: label, value: 1, unit: x, basis: measured, where: here}", "on what and when"),
    ],
)
def test_a_file_that_holds_no_rates_is_refused_in_a_line(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        read_rates(path)


def test_a_rate_of_the_machines_own_hardware_comes_first() -> None:
    common = {"what": "label", "unit": "images/s", "basis": "published", "where": "", "per": "gpu", "model": "m"}
    rates = [Rate(**common, value=value, hardware=name) for name, value in (("V100", 1.0), ("L4", 2.0))]
    chosen = find_rate(rates, "label", per="gpu", model="m", hardware="L4")
    assert chosen is not None
    assert chosen.value == 2.0


def test_what_a_bench_measured_can_be_planned_with(tmp_path: Path) -> None:
    numbers = {
        "download.http.ours.cpu_ms": 10.0,
        "simulation.parts.audited_per_cpu_s": 8000.0,
        "simulation.1000000.driver_mib": 900.0,
        "engine_memory.2000000.driver_mib": 1.0,
        "simulation.slope.driver_mib": 100.0,
        "simulation.parts.id_bytes_per_row": 8.0,
    }
    write_rates(numbers, tmp_path / "rates.yaml")
    rates = {rate.what: rate for rate in read_rates(tmp_path / "rates.yaml")}
    assert rates["download"].value == 100.0
    assert rates["audit"].value == 8000.0
    assert rates["driver"].value == pytest.approx(100 * 2**20 / 1e6, abs=0.1)
    assert rates["driver-base"].value == pytest.approx(800 * 2**20, rel=1e-3)
    assert all(rate.basis == "measured" and rate.hardware and rate.date for rate in rates.values())
    made = plan(a_job(rates=(tmp_path / "rates.yaml",), given=GivenRates(label=5.0)))
    assert {rate.value for rate in made.used if rate.what == "download"} == {100.0}
