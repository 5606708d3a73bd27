"""The published numbers, and plateaus worked out by hand from the reference's rules."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from glipv2.transfer.protocol import Mode, Plateau, TuningConfig, protocol_for

FEW_SHOT = protocol_for("prompt", 1)


def follow(aps: list[float], cfg: TuningConfig = FEW_SHOT) -> tuple[list[float], int | None]:
    """Give the rate after each evaluation, and after how many of them tuning stops."""
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=cfg.lr)
    plateau, rates = Plateau(optimizer, cfg), []
    for count, ap in enumerate(aps, start=1):
        stop = plateau.step(ap)
        rates.append(optimizer.param_groups[0]["lr"])
        if stop:
            return rates, count
    return rates, None


def test_the_rate_outlasts_three_evaluations_without_gain_and_drops_at_the_fourth() -> None:
    assert follow([20, 19, 18, 19, 19])[0] == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.005])


def test_a_gain_begins_the_count_anew() -> None:
    assert follow([20, 19, 19, 19, 21, 20, 20, 20, 20])[0] == pytest.approx([*[0.05] * 8, 0.005])


def test_a_tie_is_no_gain_for_the_rate_but_never_stops() -> None:
    rates, stopped = follow([20.0] * 30)
    assert rates[3:5] == pytest.approx([0.05, 0.005])
    assert stopped is None


def test_a_gain_below_a_ten_thousandth_is_none_for_the_rate() -> None:
    assert follow([50, 50.001, 50.002, 50.003, 50.004])[0][-1] == pytest.approx(0.005)
    assert follow([50, 50.001, 50.002, 50.003, 50.006])[0][-1] == pytest.approx(0.05)


def test_the_rate_stays_at_its_floor() -> None:
    rates, _ = follow([20.0] * 30)
    assert rates[::4][:8] == pytest.approx([5e-2, 5e-3, 5e-4, 5e-5, 5e-6, 1e-6, 1e-6, 1e-6])


def test_eight_evaluations_below_the_best_stop_few_shot_tuning() -> None:
    assert follow([20, *[19.0] * 20])[1] == 9


def test_a_tie_with_the_best_begins_the_count_to_the_stop_anew() -> None:
    assert follow([20, *[19.0] * 7, 20, *[19.0] * 20])[1] == 17


def test_four_evaluations_below_the_best_stop_tuning_with_all_data() -> None:
    rates, stopped = follow([20, *[19.0] * 20], protocol_for("full", None))
    assert stopped == 5
    assert rates == pytest.approx([1e-4, 1e-4, 1e-4, 1e-5, 1e-5])


def test_an_ap_of_zero_says_nothing_about_the_rate() -> None:
    assert follow([0.0] * 30) == ([0.05] * 30, None)
    assert follow([10, *[0.0] * 20]) == ([0.05] * 9, 9)


@pytest.mark.parametrize(("shots", "copies"), [(1, 8), (2, 8), (3, 4), (5, 2), (10, 1), (30, 1), (None, 1)])
def test_the_fewer_the_shots_the_more_often_an_epoch_repeats_them(shots: int | None, copies: int) -> None:
    assert protocol_for("full", shots).copies == copies


@pytest.mark.parametrize(
    ("mode", "lr", "decay"), [("full", 1e-4, 0.05), ("linear", 1e-4, 0.05), ("prompt", 0.05, 0.25)]
)
def test_each_mode_has_its_published_rates(mode: Mode, lr: float, decay: float) -> None:
    cfg = protocol_for(mode, 3)
    assert (cfg.lr, cfg.weight_decay, cfg.text_lr) == (lr, decay, 1e-5)
    assert (cfg.max_epochs, cfg.batch_size, cfg.lr_floor, cfg.clip_norm) == (200, 4, 1e-6, 1.0)


def test_zero_shots_have_no_protocol() -> None:
    with pytest.raises(ValueError, match="shots is 0; give 1 or more"):
        protocol_for("full", 0)


@pytest.mark.parametrize(
    "change",
    [
        *({name: 0} for name in ("batch_size", "max_epochs", "copies", "stop_patience", "evaluate_every")),
        *({name: 0} for name in ("lr", "text_lr", "clip_norm")),
        *({name: -1} for name in ("step_patience", "cache_mib", "weight_decay", "lr_floor")),
        *({"lr": float("nan")}, {"flip": 1.5}, {"scales": ()}, {"scales": (0.5, 0)}),
    ],
)
def test_a_number_that_makes_no_sense_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*; give"):
        replace(FEW_SHOT, **change)
