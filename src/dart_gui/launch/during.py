"""Evaluation while training: which weights are evaluated next, and which are kept as the best.

Level-triggered: what is to be evaluated are the pins without a result, what is best follows from the
``eval`` events. So the supervisor, or the process of an evaluation, may be killed at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dart_gui.config import Config
from dart_gui.errors import DataError
from dart_gui.launch import pinned
from dart_gui.launch.pinned import Pin
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.progress import Event, Progress, number
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.stopping import is_comparable
from dart_gui.metrics import MetricsWriter
from dart_gui.types import WeightsRef


def best_of(evals: Sequence[Event], config: Config) -> Event | None:
    """The evaluation, while or after training, with the highest success; the earlier of equals."""
    comparable = [e for e in evals if is_comparable(e, config, phases=("during", "after"))]
    return max(comparable, key=lambda e: number(e, "success_rate") or 0.0, default=None)


class EvalsDuring:
    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        *,
        latest_weights: Callable[[], WeightsRef | None],
        metrics: MetricsWriter,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._config = config
        self._latest_weights = latest_weights
        self._metrics = metrics
        self._say = say

    def unfinished_job(self) -> EvalJob | None:
        """The oldest that has weights and no result."""
        left = pinned.pins(self._folder)
        return self._job(left[0]) if left else None

    def next_job(self, progress: Progress) -> EvalJob | None:
        """What is to be evaluated now, while training goes on: what is left over, else the newest
        weights where enough versions have passed."""
        job = self.unfinished_job()
        if job is None and self._is_due(progress):
            one = self._pin(progress)
            job = self._job(one) if one else None
        return job

    def _is_due(self, progress: Progress) -> bool:
        every = self._config.eval.every
        version = number(progress.last_train_step, "policy_version") or 0
        return 0 < every <= version - progress.evaluated_version

    def _pin(self, progress: Progress) -> Pin | None:
        """The newest weights; None where they are about to be replaced: the next look finds newer."""
        try:
            weights = self._latest_weights()
        except DataError:  # a busy ledger: the next look reads it again
            return None
        version = number(progress.last_train_step, "policy_version")
        if weights is None or weights.policy_version != version:
            return None
        try:
            return pinned.pin(self._folder, weights, train_step=progress.train_step)
        except DataError as error:
            self._give_up(weights.policy_version, str(error))
            return None

    def _job(self, one: Pin) -> EvalJob:
        return EvalJob(
            phase="during",
            temperature=self._config.eval.temperature,
            train_step=one.train_step,
            weights=WeightsRef(policy_version=one.policy_version, path=str(one.path)),
        )

    def give_up(self, reason: str) -> None:
        """The evaluation in hand failed for good; training goes on without it."""
        for one in pinned.pins(self._folder)[:1]:
            self._give_up(one.policy_version, reason)
            pinned.release(self._folder, one)

    def _give_up(self, policy_version: int, reason: str) -> None:
        self._metrics.log("eval_given_up", policy_version=policy_version, reason=reason)
        self._say(f"the evaluation of policy version {policy_version} is given up: {reason}")

    def settle(self, progress: Progress) -> None:
        """Keep the best, and forget the other weights that have been evaluated."""
        best = best_of(progress.evals, self._config)
        best_version = int(number(best, "policy_version") or 0) if best else None
        done = {
            int(number(event, "policy_version") or 0)
            for event in progress.evals
            if event.get("phase") == "during"
        }
        for one in pinned.pins(self._folder):
            if best is not None and one.policy_version == best_version:
                pinned.keep_best(self._folder, one, best)
                self._say_best(best)
            elif one.policy_version in done:
                pinned.release(self._folder, one)
        if best_version is not None and self._config.eval.every:
            pinned.point_best_at(self._folder, best_version)

    def settle_final(self, progress: Progress) -> None:
        """The final weights may be the best: those in service, which training will not replace."""
        best = best_of(progress.evals, self._config)
        if best is not None and best.get("phase") == "after" and self._config.eval.every:
            weights = self._latest_weights()
            kept = pinned.read_best(self._folder).get("policy_version")
            version = number(best, "policy_version")
            if weights is not None and weights.policy_version == version != kept:
                step = int(number(best, "train_step") or 0)
                pinned.pin(self._folder, weights, train_step=step)
        self.settle(progress)

    def _say_best(self, best: Event) -> None:
        rate = number(best, "success_rate") or 0.0
        self._say(
            f"checkpoints/best is policy version {best.get('policy_version')}: "
            f"{100 * rate:.1f} % of {best.get('num_episodes')} held-out episodes"
        )
