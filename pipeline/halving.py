"""Early stopping of trials that fall behind (asynchronous successive halving), each among its own kind.

A learning rate is only worse than another on the same data set with the same shots; Ray's scheduler would compare all.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler


class HalvingWithinGroups(FIFOScheduler):
    """One of Ray's `ASHAScheduler` for every group of trials; trials start in the order given."""

    def __init__(
        self,
        group: Callable[[Mapping[str, Any]], str],
        *,
        time_attr: str,
        metric: str,
        max_t: int,
        grace_period: int = 2,
    ) -> None:
        """Compare trials whose configurations are of the same group.

        Args:
            group: names the group of a trial's configuration.
            time_attr: reported progress that trials are compared at.
            metric: reported number that should be large.
            max_t: progress of a trial that runs to its end.
            grace_period: no trial is stopped before.
        """
        super().__init__()
        self._group = group
        self._asha: dict[str, Any] = {
            "time_attr": time_attr,
            "metric": metric,
            "mode": "max",
            "max_t": max_t,
            "grace_period": min(grace_period, max_t),
            "stop_last_trials": False,
        }
        self._groups: dict[str, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Open a group with its first trial."""
        name = self._group(trial.config)
        self._groups.setdefault(name, ASHAScheduler(**self._asha)).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask the trial's group whether it goes on."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Tell the trial's group."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Trial) -> ASHAScheduler:
        return self._groups[self._group(trial.config)]
