"""``dart-gui eval --agent openai``: a model behind any OpenAI-compatible server on any suite.

The episodes are those of training (``runner/episode.py``); only the policy is another one. What is
finished is a folder on disk, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import ImageLimits
from dart_gui.agent.registry import make_agent
from dart_gui.config import Config
from dart_gui.env.suites import Suite, eval_seed, get_suite, open_cluster
from dart_gui.errors import ConfigError, EnvError, SetupError
from dart_gui.files import write_whole
from dart_gui.launch import preflight, run_folder, scores
from dart_gui.launch.commands import shown
from dart_gui.launch.osworld_results import ResultFolder, Score
from dart_gui.launch.run_folder import RunFolder
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import Episode, EpisodeLimits
from dart_gui.runner.openai_policy import Endpoint, OpenAIPolicy, checked_base_url
from dart_gui.runner.trials import Played, Players, Trial
from dart_gui.types import SamplingParams, Task

_PROBE_PX = 112


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiJob:
    """What is played, besides what the configuration says."""

    temperature: float
    num_episodes: int | None  # instances over all tasks; None: one of each task
    num_repeats: int  # attempts at each instance
    out: Path | None  # None: a new folder beside the runs


def run_api_eval(console: Console, config: Config, job: ApiJob) -> int:
    """Play what is not finished yet and sum up all of it; the exit code.

    Raises:
        DartError: an option, the server, the machine or the folder is not as it must be.
    """
    suite, tasks, endpoint = check(config, job)
    agent = new_agent(config)
    out = (job.out or Path(config.run.dir) / "eval" / run_folder.new_run_id(time.time())).absolute()
    results = ResultFolder(
        out,
        settings=settings(config, job, suite, agent),
        action_space=config.agent.name,
        model=endpoint.model,
        domain_of=suite.domain_of,
    )
    results.check_settings()
    trials = plan(tasks, job)
    collect(results, trials)  # what cannot be read is told before hours of playing
    if not all(results.is_finished(trial) for trial in trials):
        asyncio.run(check_server(config, job, endpoint))
    with locked(out):
        results.open()
        todo = [trial for trial in trials if not results.is_finished(trial)]
        say(
            console,
            f"evaluating {endpoint.model} on {len(tasks)} tasks of {suite.name} in {shown(out)}: "
            f"{len(trials) - len(todo)} of {len(trials)} episodes are finished",
        )
        player = Player(console, config, job, endpoint, agent, results)
        stopped_by = player.play(todo) if todo else None
        results.close()
        found = collect(results, trials)
        summary = scores.summarise(found, num_repeats=job.num_repeats, domain_of=suite.domain_of)
        write_summary(results, summary)
    show(console, out, summary, is_stopped=stopped_by is not None)
    if stopped_by is not None:
        return 128 + stopped_by
    if summary.overall.result.success.rate is None:
        raise EnvError(f"none of the {len(trials)} episodes could be evaluated: {_failures(found)}")
    return 0


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One evaluation writes into a folder at a time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{out} cannot be made: {error.strerror}. Give another --out.") from None
    with run_folder.locked(RunFolder(out)):
        yield


# --- before anything is written -------------------------------------------------------------


def check(config: Config, job: ApiJob) -> tuple[Suite, tuple[str, ...], Endpoint]:
    """Raises ``ConfigError`` or ``SetupError`` for what can be seen without a request."""
    if not config.api.base_url or not config.api.model:
        raise ConfigError(
            "--agent openai needs the server and its model, as in `dart-gui eval --agent openai "
            "--base-url http://127.0.0.1:8000/v1 --model NAME --suite desktop-mini`"
        )
    for name, value in (("--repeats", job.num_repeats), ("--episodes", job.num_episodes)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value} must be at least 1")
    endpoint = Endpoint(
        base_url=checked_base_url(config.api.base_url),
        model=config.api.model,
        key=os.environ.get(config.api.key_env, "").strip(),
        key_env=config.api.key_env,
        timeout_s=config.api.timeout_s,
        send_seed=config.api.send_seed,
        max_tokens_name=config.api.max_tokens_name,
    )
    tasks = preflight.check_tasks(config)
    preflight.check_browser(config)
    return get_suite(config.env.suite), tuple(dict.fromkeys(tasks)), endpoint


def plan(tasks: Sequence[str], job: ApiJob) -> list[Trial]:
    """Task by task within an attempt, so that an evaluation that is cut short is balanced."""
    num_instances = math.ceil((job.num_episodes or len(tasks)) / len(tasks))
    return [
        Trial(Task(task_id=task_id, seed=eval_seed(index)), repeat)
        for repeat in range(job.num_repeats)
        for index in range(num_instances)
        for task_id in tasks
    ]


def new_agent(config: Config) -> Agent:
    """Raises ``ConfigError`` or ``SetupError``: there is no such agent, or no such model folder."""
    api = config.api
    limits = ImageLimits(api.min_pixels, api.max_pixels, api.factor)
    return make_agent(Path(api.folder) if api.folder else limits, config.agent)


def settings(config: Config, job: ApiJob, suite: Suite, agent: Agent) -> dict[str, Any]:
    """What results depend on. Not the server's address, which may be another one tomorrow."""
    return {
        "model": config.api.model,
        "agent": config.agent.model_dump(mode="json"),
        "suite": suite.name,
        "env_version": suite.env_version,
        "temperature": job.temperature,
        "max_tokens": config.api.max_tokens,
        "max_steps": config.runner.max_steps,
        "max_parse_errors": config.runner.max_parse_errors,
        "image_limits": asdict(agent.limits),
        "transform": agent.transform.__name__,
    }


async def check_server(config: Config, job: ApiJob, endpoint: Endpoint) -> None:
    """One request with a picture, before a desktop is started. Raises as ``OpenAIPolicy.check``."""
    picture = io.BytesIO()
    Image.new("RGB", (_PROBE_PX, _PROBE_PX), (255, 255, 255)).save(picture, "PNG")
    sampling = SamplingParams(temperature=job.temperature, max_tokens=config.api.max_tokens, seed=0)
    async with OpenAIPolicy(endpoint, clock=SystemClock()) as policy:
        await policy.check(picture.getvalue(), sampling)


# --- playing --------------------------------------------------------------------------------


class Stopping:
    """SIGINT and SIGTERM cancel the task, whose environments are then closed in order."""

    def __init__(self) -> None:
        self.number: int | None = None

    def install(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._received, number, task)

    def _received(self, number: int, task: asyncio.Task[Any]) -> None:
        self.number = self.number or number
        task.cancel()


@dataclass(frozen=True, slots=True)
class Player:
    """Plays trials and files each as it ends."""

    console: Console
    config: Config
    job: ApiJob
    endpoint: Endpoint
    agent: Agent
    results: ResultFolder

    def play(self, todo: Sequence[Trial]) -> int | None:
        """The signal that stopped it, or None once all are played."""
        stopping = Stopping()
        try:
            asyncio.run(self._play(todo, stopping))
        except asyncio.CancelledError:
            if stopping.number is None:
                raise
        return stopping.number

    async def _play(self, todo: Sequence[Trial], stopping: Stopping) -> None:
        stopping.install()
        config, clock = self.config, SystemClock()
        num_slots = min(config.runner.num_slots, len(todo))
        env = config.env.model_copy(update={"num_envs": num_slots})
        limits = EpisodeLimits.from_config(config, temperature=self.job.temperature)
        async with AsyncExitStack() as stack:
            cluster = open_cluster(env)
            stack.push_async_callback(cluster.close)
            await cluster.start()
            players = Players(
                cluster=cluster,
                policy=await stack.enter_async_context(OpenAIPolicy(self.endpoint, clock=clock)),
                agent=self.agent,
                limits=replace(limits, max_tokens=config.api.max_tokens),
                clock=clock,
                max_attempts=config.runner.max_attempts,
            )
            numbers = itertools.count(1)

            async def ended(played: Played) -> None:
                place = await asyncio.to_thread(self.results.write, played)
                say(self.console, f"[{next(numbers)}/{len(todo)}] {told(place, played.episode)}")

            await players.play_all(todo, num_slots, ended)


def told(place: Path, episode: Episode) -> str:
    if episode.evaluation is None:
        said = f"failed: {episode.stop_reason.value}: {episode.message}"
    else:
        said = f"reward {episode.evaluation.reward:g}, {episode.stop_reason.value}"
    wall_s = episode.ended_at - episode.started_at
    return f"{place.parent.name}/{place.name}: {said}, {len(episode.steps)} steps, {wall_s:.0f} s"


# --- afterwards -----------------------------------------------------------------------------


def collect(results: ResultFolder, trials: Sequence[Trial]) -> dict[str, list[Score | None]]:
    """Task id -> the scores of its trials, from the disk."""
    found: dict[str, list[Score | None]] = {trial.task.task_id: [] for trial in trials}
    for trial in trials:
        found[trial.task.task_id].append(results.read(trial))
    return found


def write_summary(results: ResultFolder, summary: scores.Summary) -> None:
    used = results.settings
    tree = {"settings": used, **summary.to_json()}
    write_whole(results.out / "summary.json", json.dumps(tree, indent=1) + "\n")
    title = f"{used['model']} on {used['suite']}"
    write_whole(results.out / "summary.md", scores.markdown(title, used, summary))


def show(console: Console, out: Path, summary: scores.Summary, *, is_stopped: bool) -> None:
    console.print(scores.table("domain", summary.by_domain, summary))
    by_task = {name.partition("/")[2]: figures for name, figures in summary.by_task.items()}
    console.print(scores.table("task", by_task, summary))
    if is_stopped:
        say(
            console,
            f"stopped; {summary.overall.num_missing} episodes are still to be played. The same "
            f"command with `--out {shown(out)}` goes on.",
        )
    say(console, f"results: {shown(out)}/summary.md, {shown(out)}/summary.json")


def say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _failures(found: Mapping[str, Sequence[Score | None]]) -> str:
    messages = Counter(
        score.message for each in found.values() for score in each if score is not None
    )
    return "; ".join(f"{count} times: {text}" for text, count in messages.most_common(3))
