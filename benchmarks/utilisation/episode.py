"""One episode, ours or with traits of the published way."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from benchmarks.utilisation import published
from benchmarks.utilisation.figures import Played
from benchmarks.utilisation.meter import Meter, Part
from dart_gui.env.desktop.client import GuestClient, Screenshot
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.tasks import TaskFolder
from dart_gui.env.providers.protocol import Desktop
from dart_gui.errors import EnvError
from dart_gui.types import Action, Click, Hotkey, Point, Scroll, Task, TypeText

MIN_STEPS = 12
"""Of an episode: the evaluation looks for what the second, seventh and twelfth step do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Of the published way, which an arm has."""

    waits: bool = False  # fixed instead of observed
    no_pool: bool = False  # a desktop boots when the episode wants it
    scrot: bool = False  # a screenshot is a process and a file
    pyautogui: bool = False  # an action is a process
    tree: bool = False  # the accessibility tree, on each step


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The same for all arms of a round."""

    num_steps: int
    seed: int
    low_s: float  # the model answers between the two, uniformly
    high_s: float
    reset_wait_s: float = published.RESET_WAIT_S

    def latencies(self) -> list[float]:
        rng = random.Random(self.seed)
        return [rng.uniform(self.low_s, self.high_s) for _ in range(self.num_steps)]


def script(num_steps: int, *, width: int, height: int) -> list[Action]:
    """Of five kinds in turn; every second of five types a command."""
    middle = Point(width // 4, height // 4)
    actions: list[Action] = []
    for step in range(num_steps):
        kinds: tuple[Action, ...] = (
            Click(point=middle),
            TypeText(text=f"touch s{step // 5 + 1}\n"),
            Click(point=Point(middle.x + 20, middle.y + 20)),
            Hotkey(keys=("ctrl", "l")),
            Scroll(direction="down", point=middle),
        )
        actions.append(kinds[step % len(kinds)])
    return actions


class TraitClient(GuestClient):
    """The guest client of ``DesktopEnv``, measured, and with the traits of an arm."""

    def __init__(self, desktop: Desktop, traits: Traits, setting: Setting, meter: Meter) -> None:
        super().__init__(desktop.address, what=f"the desktop {desktop.desktop_id}")
        self._traits, self._setting, self._meter = traits, setting, meter
        self._num_shots = 0

    async def act(self, action: Action) -> str | None:
        with self._meter.measure(Part.ACTION):
            if not self._traits.pyautogui:
                return await super().act(action)
            await published.act(self, action)
        self._meter.move(Part.ACTION, Part.WAIT, published.waits_in(action))
        return None

    async def screenshot(
        self,
        *,
        stable_s: float = 0.0,
        react_s: float = 0.0,
        timeout_s: float = 0.0,
        cursor: bool = True,
    ) -> Screenshot:
        if self._traits.waits:
            first = self._num_shots == 0
            with self._meter.measure(Part.WAIT):
                await asyncio.sleep(self._setting.reset_wait_s if first else published.STEP_WAIT_S)
            stable_s = 0.0
        elif self._traits.scrot and stable_s:
            with self._meter.measure(Part.SETTLE):
                # As the route of our screenshots waits, whose picture is thrown away here.
                await super().screenshot(
                    stable_s=stable_s, react_s=react_s, timeout_s=timeout_s, cursor=cursor
                )
        self._num_shots += 1
        shot = await self._shoot(stable_s=stable_s, react_s=react_s, timeout_s=timeout_s)
        if self._traits.tree:
            with self._meter.measure(Part.TREE):
                await published.tree(self)
        return shot

    async def _shoot(self, *, stable_s: float, react_s: float, timeout_s: float) -> Screenshot:
        with self._meter.measure(Part.SHOT):
            if not self._traits.scrot:
                shot = await super().screenshot(
                    stable_s=stable_s, react_s=react_s, timeout_s=timeout_s
                )
            else:
                png = await published.screenshot(self)
                shot = Screenshot(png=png, grab_ms=0, encode_ms=0, settle_ms=0, settled=False)
        self._meter.move(Part.SHOT, Part.SETTLE, shot.settle_ms / 1e3)
        return shot


class Stage:
    """A warm pool for each arm: what is played in one boots nothing for another."""

    def __init__(self, pool: DesktopPool, tasks: TaskFolder, packages: bytes) -> None:
        self.pool, self.tasks, self._packages = pool, tasks, packages

    async def play(self, arm: str, traits: Traits, setting: Setting) -> Played:
        """Raises ``EnvError`` where the desktop fails or the episode did not do what it should."""
        meter = Meter()
        with meter.measure(Part.BOOT):
            desktop = await self.pool.take()
        client = TraitClient(desktop, traits, setting, meter)
        try:
            if traits.pyautogui or traits.scrot:
                await published.prepare(client, self._packages)  # part of the image: not measured
            reward = await self._episode(client, setting, meter)
        finally:
            await client.close()
            with meter.measure(Part.END):
                await self.pool.give_back(desktop)
        if traits.waits:
            with meter.measure(Part.WAIT):
                await asyncio.sleep(published.STOP_WAIT_S)
        if reward != 1.0:
            raise EnvError(f"an episode of {arm!r} earned {reward:g}: its actions did not arrive")
        return Played(arm=arm, seconds={part: meter.seconds[part] for part in Part})

    async def _episode(self, client: TraitClient, setting: Setting, meter: Meter) -> float:
        task = Task(task_id=self.tasks.task_ids[0], seed=setting.seed)
        env = DesktopEnv(client, self.tasks, pace=Pace())
        with meter.measure(Part.SET_UP):
            seen = await env.reset(task)
        actions = script(setting.num_steps, width=seen.width, height=seen.height)
        for action, latency_s in zip(actions, setting.latencies(), strict=True):
            with meter.measure(Part.MODEL):
                await asyncio.sleep(latency_s)
            seen = await env.step(action)
            if seen.action_error is not None:
                raise EnvError(f"the desktop refused {action}: {seen.action_error}")
        with meter.measure(Part.EVALUATION):
            return (await env.evaluate()).reward
