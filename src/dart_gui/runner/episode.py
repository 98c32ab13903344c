"""One episode: screenshot -> prompt -> completion -> actions, until something ends it.

    env.reset ─▶ observation ─▶ agent.prompt ─▶ policy.complete ─▶ agent.hear ─▶ actions
                     ▲                                                             │
                     └───────────────────────── env.step ◀─────────────────────────┘

What the policy did ends in an evaluated episode; what the infrastructure did ends in an episode
without an evaluation, which the caller records as a failed attempt. Nothing here retries.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image

from dart_gui.env.protocol import HearsInfeasible
from dart_gui.errors import ContextLengthError, EnvError, PolicyError
from dart_gui.runner.clock import Clock, within
from dart_gui.types import (
    Action,
    CallUser,
    Completion,
    Evaluation,
    Finished,
    Observation,
    PlannedEpisode,
    SamplingParams,
    Step,
    StopReason,
    Task,
    Trajectory,
)

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent, Conversation, ParsedReply
    from dart_gui.config import Config
    from dart_gui.env.protocol import Env, EnvCluster
    from dart_gui.runner.policy import Policy

_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeLimits:
    """What bounds an episode and each model call of it."""

    max_steps: int  # model calls
    max_parse_errors: int  # unparsable replies that an episode survives
    timeout_s: float  # wall clock of the whole episode, evaluation included
    temperature: float  # 0 is greedy
    max_tokens: int  # of one reply

    @classmethod
    def from_config(cls, config: Config, *, temperature: float | None = None) -> EpisodeLimits:
        return cls(
            max_steps=config.runner.max_steps,
            max_parse_errors=config.runner.max_parse_errors,
            timeout_s=config.runner.episode_timeout_s,
            temperature=config.rollout.temperature if temperature is None else temperature,
            max_tokens=config.rollout.max_tokens,
        )

    def under(self, max_steps: int | None) -> EpisodeLimits:
        """These limits, with no more than ``max_steps`` model calls where it is given."""
        if max_steps is None:
            return self
        return replace(self, max_steps=min(self.max_steps, max_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One attempt at a task, from start to stop."""

    task: Task
    instruction: str  # empty where the reset failed
    steps: list[Step]  # [T]
    stop_reason: StopReason
    evaluation: Evaluation | None  # None exactly where the stop reason is infrastructure
    images: dict[str, bytes]  # sha256 -> PNG of every image that was sent
    message: str  # what failed; empty otherwise
    started_at: float
    ended_at: float

    @property
    def succeeded(self) -> bool:
        return self.evaluation is not None and self.evaluation.success

    def trajectory(self, planned: PlannedEpisode, *, run_id: str) -> Trajectory:
        """The record of an evaluated episode.

        Raises:
            ValueError: the episode was not evaluated.
        """
        if self.evaluation is None:
            raise ValueError(f"{planned.episode_id} has no evaluation: {self.message}")
        return Trajectory(
            trajectory_id=planned.episode_id,
            run_id=run_id,
            group_id=planned.group_id,
            task=self.task,
            attempt=planned.attempt,
            instruction=self.instruction,
            steps=self.steps,
            stop_reason=self.stop_reason,
            reward=self.evaluation.reward,
            success=self.evaluation.success,
            started_at=self.started_at,
            ended_at=self.ended_at,
        )


def step_seed(episode_seed: int, index: int) -> int:
    """The seed of one model call: 63 bits of sha256, so that no two calls of a group share one."""
    digest = hashlib.sha256(f"{episode_seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


async def run_episode(
    task: Task,
    *,
    env: Env,
    policy: Policy,
    agent: Agent,
    limits: EpisodeLimits,
    seed: int,
    clock: Clock,
    trajectory_id: str,
) -> Episode:
    """Play ``task`` once in a fresh ``env``. ``seed`` is that of the sampling, not of the task.

    Raises:
        DartError: what no retry mends, such as an unknown task or a refused token. Failures of the
            environment and of the service are not raised: they are the episode's stop reason.
    """
    play = _Play(env=env, policy=policy, limits=limits, clock=clock, trajectory_id=trajectory_id)
    started_at, began, evaluation, message = clock.now(), clock.monotonic(), None, ""
    try:
        stop_reason, evaluation = await within(
            limits.timeout_s, play.run(task, agent=agent, seed=seed), clock
        )
    except TimeoutError:
        stop_reason = StopReason.TIMEOUT
        message = f"no end after {limits.timeout_s:g} s and {len(play.steps)} steps"
    except EnvError as error:
        stop_reason, message = StopReason.ENV_ERROR, str(error)
    except PolicyError as error:
        stop_reason, message = StopReason.POLICY_ERROR, str(error)
    return Episode(
        task=task,
        instruction=play.instruction,
        steps=play.steps,
        stop_reason=stop_reason,
        evaluation=evaluation,
        images=play.images,
        message=message,
        started_at=started_at,
        ended_at=started_at + clock.monotonic() - began,
    )


async def run_leased_episode(
    task: Task,
    *,
    cluster: EnvCluster,
    policy: Policy,
    agent: Agent,
    limits: EpisodeLimits,
    seed: int,
    clock: Clock,
    trajectory_id: str,
) -> Episode:
    """:func:`run_episode` in an environment of ``cluster``. A failed lease is a failed attempt."""
    started_at, began, episode = clock.now(), clock.monotonic(), None
    try:
        async with cluster.lease(task) as env:
            episode = await run_episode(
                task,
                env=env,
                policy=policy,
                agent=agent,
                limits=limits,
                seed=seed,
                clock=clock,
                trajectory_id=trajectory_id,
            )
    except EnvError as error:
        # A page that breaks when it is given back does not undo an episode that was evaluated.
        return episode or Episode(
            task=task,
            instruction="",
            steps=[],
            stop_reason=StopReason.ENV_ERROR,
            evaluation=None,
            images={},
            message=str(error),
            started_at=started_at,
            ended_at=started_at + clock.monotonic() - began,
        )
    return episode


@dataclass(slots=True, kw_only=True)
class _Play:
    """An episode under way: the collaborators, and what has happened so far."""

    env: Env
    policy: Policy
    limits: EpisodeLimits
    clock: Clock
    trajectory_id: str
    instruction: str = ""
    num_parse_errors: int = 0
    steps: list[Step] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    async def run(self, task: Task, *, agent: Agent, seed: int) -> tuple[StopReason, Evaluation]:
        observation = check_screenshot(await self.env.reset(task))
        self.instruction = observation.instruction
        conversation = agent.start(observation)
        while True:
            called_at = self.clock.monotonic()
            try:
                completion = await self._complete(conversation, step_seed(seed, len(self.steps)))
            except ContextLengthError:
                if not self.steps:  # nothing was sampled, so there is nothing to evaluate
                    raise
                return StopReason.MAX_TOKENS, await self._evaluate()
            reply = conversation.hear(completion.text)
            answered_at = self.clock.monotonic()
            parse_error = _parse_error(reply)
            observation, executed = await self._act(
                () if parse_error else reply.actions, observation
            )
            self.steps.append(
                Step(
                    index=len(self.steps),
                    completion=completion,
                    actions=executed,
                    parse_error=parse_error,
                    action_error=observation.action_error,
                    model_s=answered_at - called_at,
                    env_s=self.clock.monotonic() - answered_at,
                )
            )
            if stop_reason := self._stop_reason(observation):
                if stop_reason is StopReason.INFEASIBLE and isinstance(self.env, HearsInfeasible):
                    self.env.declare_infeasible()
                return stop_reason, await self._evaluate()
            conversation.see(observation)

    async def _complete(self, conversation: Conversation, seed: int) -> Completion:
        prompt = conversation.prompt()
        completion = await self.policy.complete(
            prompt.messages,
            prompt.images,
            SamplingParams(
                temperature=self.limits.temperature, max_tokens=self.limits.max_tokens, seed=seed
            ),
            trajectory_id=self.trajectory_id,
        )
        self.images.update(prompt.images)
        return completion

    async def _act(
        self, actions: Sequence[Action], observation: Observation
    ) -> tuple[Observation, list[Action]]:
        """Carry out the actions of a reply, in order, up to the one that ends the episode.

        The observation is the last one, with the errors of all of them; unchanged where nothing was
        carried out.
        """
        executed: list[Action] = []
        errors: list[str] = []
        observation = replace(observation, action_error=None)
        for action in actions:
            executed.append(action)
            if isinstance(action, Finished | CallUser):
                break
            observation = check_screenshot(await self.env.step(action))
            if observation.action_error:
                errors.append(observation.action_error)
            if observation.terminated:
                break
        return replace(observation, action_error="; ".join(errors) or None), executed

    def _stop_reason(self, observation: Observation) -> StopReason | None:
        """Why the episode ends after its newest step, or None. What the task says comes first."""
        step = self.steps[-1]
        if step.parse_error is not None:
            self.num_parse_errors += 1
        last = step.actions[-1] if step.actions else None
        if observation.terminated or isinstance(last, Finished):
            return StopReason.DONE
        if isinstance(last, CallUser):
            return StopReason.INFEASIBLE
        if self.num_parse_errors > self.limits.max_parse_errors:
            return StopReason.PARSE_ERROR
        if len(self.steps) >= self.limits.max_steps:
            return StopReason.MAX_STEPS
        return None

    async def _evaluate(self) -> Evaluation:
        evaluation = await self.env.evaluate()
        if not (math.isfinite(evaluation.reward) and 0.0 <= evaluation.reward <= 1.0):
            raise EnvError(
                f"the environment gave a reward of {evaluation.reward}, expected a number in [0, 1]"
            )
        return evaluation


def check_screenshot(observation: Observation) -> Observation:
    """The observation, if its screenshot is a whole PNG of the size that it says.

    Points of actions are in pixels of that size: with another one every click would go astray.

    Raises:
        EnvError: it is not.
    """
    try:
        with Image.open(io.BytesIO(observation.screenshot), formats=["PNG"]) as image:
            size = image.size
            image.verify()  # every chunk, without decoding the pixels; but for the last checksum
            if _PNG_END not in observation.screenshot:
                raise ValueError("its end is missing")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise EnvError(
            f"the environment gave a screenshot of {len(observation.screenshot)} bytes that is not "
            f"a whole PNG: {error}"
        ) from error
    if size != (observation.width, observation.height):
        raise EnvError(
            f"the environment gave a screenshot of {size[0]}x{size[1]} pixels, and says that it has "
            f"{observation.width}x{observation.height}"
        )
    return observation


def _parse_error(reply: ParsedReply) -> str | None:
    if reply.error is None and not reply.actions:
        return "the reply has no action"
    return reply.error
