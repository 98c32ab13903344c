"""One episode to look at: its screenshots with the actions drawn on them, and what was thought."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dart_gui.env.protocol import HearsInfeasible
from dart_gui.errors import DartError, EnvError, PolicyError
from dart_gui.runner import drawing
from dart_gui.runner.clock import Clock
from dart_gui.runner.episode import Episode, EpisodeLimits, run_episode
from dart_gui.types import Action, Evaluation, Observation, Step, StopReason, Task

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent
    from dart_gui.env.protocol import Env, EnvCluster
    from dart_gui.runner.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedStep:
    index: int
    thought: str
    actions: list[str]  # one line each
    problem: str | None  # a reply that could not be parsed, an action that failed
    screenshot: Path  # what the model saw, with the actions drawn on it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayResult:
    episode: Episode
    steps: list[PlayedStep]
    last_screenshot: Path  # after the last action
    sheet: Path  # all of them side by side
    report: Path  # episode.md

    @property
    def paths(self) -> list[Path]:
        return [step.screenshot for step in self.steps] + [
            self.last_screenshot,
            self.sheet,
            self.report,
        ]


async def play(
    task: Task,
    out_dir: Path,
    *,
    cluster: EnvCluster,
    policy: Policy,
    agent: Agent,
    limits: EpisodeLimits,
    seed: int,
    clock: Clock,
) -> PlayResult:
    """Play ``task`` and write ``step_00.png``, ..., ``final.png``, ``episode.png``, ``episode.md``.

    Raises:
        EnvError, PolicyError: the infrastructure failed; nothing is written.
        DartError: what no retry mends, such as an unknown task.
    """
    async with cluster.lease(task) as env:
        recorder = _Recorder(env)
        episode = await run_episode(
            task,
            env=recorder,
            policy=policy,
            agent=agent,
            limits=limits,
            seed=seed,
            clock=clock,
            trajectory_id=f"play/{task.task_id}/{task.seed}",
        )
    if episode.evaluation is None:
        raise _failure(episode)
    return write(episode, recorder.observations, out_dir)


def write(episode: Episode, observations: list[Observation], out_dir: Path) -> PlayResult:
    """The files of an episode that is over. ``observations`` are those after the reset and after
    each action that went to the environment."""
    out_dir.mkdir(parents=True, exist_ok=True)
    played: list[PlayedStep] = []
    frames: list[tuple[drawing.Image, str]] = []
    position = 0
    for step in episode.steps:
        summary = _played_step(step, out_dir)
        frame = drawing.annotate(observations[position], step.actions, note=step.parse_error)
        frame.save(summary.screenshot)
        frames.append((frame, f"step {step.index}: " + "; ".join(summary.actions)))
        played.append(summary)
        position += sum(drawing.reaches_environment(action) for action in step.actions)
    last = drawing.annotate(observations[position], [])
    last.save(out_dir / "final.png")
    frames.append((last, f"end: {episode.stop_reason.value}, {_score(episode)}"))
    drawing.contact_sheet(frames, title=episode.instruction).save(out_dir / "episode.png")
    report = out_dir / "episode.md"
    report.write_text(_markdown(episode, played), encoding="utf-8")
    return PlayResult(
        episode=episode,
        steps=played,
        last_screenshot=out_dir / "final.png",
        sheet=out_dir / "episode.png",
        report=report,
    )


@dataclass(slots=True)
class _Recorder:
    """An environment that remembers what it showed."""

    env: Env
    observations: list[Observation] = field(default_factory=list)

    async def reset(self, task: Task) -> Observation:
        return self._seen(await self.env.reset(task))

    async def step(self, action: Action) -> Observation:
        return self._seen(await self.env.step(action))

    async def evaluate(self) -> Evaluation:
        return await self.env.evaluate()

    def declare_infeasible(self) -> None:
        if isinstance(self.env, HearsInfeasible):
            self.env.declare_infeasible()

    async def close(self) -> None:
        await self.env.close()

    def _seen(self, observation: Observation) -> Observation:
        self.observations.append(observation)
        return observation


def _failure(episode: Episode) -> DartError:
    kind = PolicyError if episode.stop_reason is StopReason.POLICY_ERROR else EnvError
    return kind(
        f"the episode of {episode.task.task_id} (seed {episode.task.seed}) ended by "
        f"{episode.stop_reason.value} after {len(episode.steps)} steps: {episode.message}"
    )


def _played_step(step: Step, out_dir: Path) -> PlayedStep:
    return PlayedStep(
        index=step.index,
        thought=thought_of(step.completion.text),
        actions=[drawing.describe(action) for action in step.actions] or ["no action"],
        problem=drawing.visible(step.parse_error or step.action_error or "") or None,
        screenshot=out_dir / f"step_{step.index:02d}.png",
    )


def thought_of(reply: str) -> str:
    """What a reply says before its action, on one line."""
    thought = reply.partition("Action:")[0].strip().removeprefix("Thought:")
    return drawing.visible(" ".join(thought.split()))


def _score(episode: Episode) -> str:
    if episode.evaluation is None:
        return "not evaluated"
    word = "success" if episode.evaluation.success else "no success"
    return f"reward {episode.evaluation.reward:.2f} ({word})"


def _markdown(episode: Episode, played: list[PlayedStep]) -> str:
    lines = [
        f"# {episode.task.task_id}, seed {episode.task.seed}",
        "",
        f"> {episode.instruction}",
        "",
        f"{len(played)} steps, ended by `{episode.stop_reason.value}`: {_score(episode)}.",
    ]
    for step in played:
        lines += ["", f"## Step {step.index}", "", f"![]({step.screenshot.name})", ""]
        lines += [f"Thought: {step.thought}", ""] if step.thought else []
        lines += [f"- `{action}`" for action in step.actions]
        lines += ["", f"Problem: {step.problem}"] if step.problem else []
    lines += ["", "## End", "", "![](final.png)", "", _score(episode), ""]
    return "\n".join(lines)
