"""What every environment offers, whoever renders the screen: a page, a desktop, a script.

An environment is single use: one ``reset``, any number of ``step``, ``evaluate``, ``close``.
Whatever breaks on our side raises :class:`~dart_gui.errors.EnvError`, so that the runner retries
the episode. An action that cannot be carried out (an unknown key, a point outside the screen) is
the policy's doing: it changes nothing and shows as ``Observation.action_error``.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dart_gui.types import Action, Evaluation, Observation, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStats:
    num_envs: int
    num_busy: int  # leased now
    num_replaced: int  # broken pages and browsers replaced since the start
    busy_s: float  # env-seconds leased since the start, running leases included


class Env(Protocol):
    async def reset(self, task: Task) -> Observation:
        """Start ``task`` and show its first screen.

        Raises:
            EnvError: the environment broke.
            ConfigError: the environment has no such task.
            RuntimeError: the environment was reset before.
        """
        ...

    async def step(self, action: Action) -> Observation:
        """Carry out one action and show the screen after it.

        Raises:
            EnvError: the environment broke.
            ValueError: ``Finished`` or ``CallUser``, which the runner answers itself.
            RuntimeError: not reset yet, or the task has terminated.
        """
        ...

    async def evaluate(self) -> Evaluation:
        """Score the episode so far. What an unfinished task is worth is the suite's affair: nothing in
        MiniWoB++, what its last state is worth where the agent says when it is done.

        Raises:
            EnvError: the environment broke.
            RuntimeError: not reset yet.
        """
        ...

    async def close(self) -> None:
        """Give up the environment. Idempotent, and raises nothing that is expected."""
        ...


@runtime_checkable
class HearsInfeasible(Protocol):
    """An environment whose evaluation depends on whether the agent said that the task cannot be done."""

    def declare_infeasible(self) -> None:
        """The agent ended the episode with ``CallUser``; ``evaluate`` follows."""
        ...


class EnvCluster(Protocol):
    async def start(self) -> None:
        """Raises ``SetupError`` where the machine lacks what the environments need."""
        ...

    def lease(self, task: Task | None = None) -> AbstractAsyncContextManager[Env]:
        """A fresh environment: waits for a free one, closes it at exit.

        ``task`` is a hint of what it will be reset to: the cluster may have one at hand where that
        is cheap.
        """
        ...

    async def close(self) -> None:
        """End every process that the cluster started. Idempotent."""
        ...

    def stats(self) -> ClusterStats: ...
