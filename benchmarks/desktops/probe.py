"""Latencies and memory of one provider's desktops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.providers.protocol import Desktop, Provider
from dart_gui.errors import EnvError
from dart_gui.types import Action, Click, Hover, Point, Press, TypeText

WINDOW = "Terminal"
XTERM = ["xterm", "-T", WINDOW, "-e", "bash"]
PAINTED: dict[str, Any] = {"window_name": WINDOW, "min_colors": 2, "timeout_ms": 60_000}
READY_S = 180.0
ACTIONS: dict[str, Action] = {
    "move": Hover(point=Point(60, 60)),
    "click": Click(point=Point(60, 60)),
    "key": Press(key="a"),
    "type 20 characters": TypeText(text="twenty letters here "),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    num_boots: int
    num_resets: int
    num_shots: int
    num_actions: int  # of each kind
    num_together: int  # desktops whose memory is measured at once

    @property
    def num_parts(self) -> int:
        return self.num_boots + 2 * self.num_resets + 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """Seconds or milliseconds as the names say; one value per repetition."""

    boot_s: list[float]
    destroy_s: list[float]
    reset_cold_s: list[float]  # a desktop, its task's window painted, the first screenshot
    reset_warm_s: list[float]  # the same with a desktop from the pool
    take_warm_s: list[float]  # of it until the desktop is there
    shot_ms: list[float]  # request to whole PNG
    grab_ms: list[float]  # of it in the desktop
    encode_ms: list[float]
    action_ms: dict[str, list[float]]
    bare_bytes: list[float]  # memory of a desktop without an application
    window_bytes: list[float]  # and with a terminal


async def probe(provider: Provider, plan: Plan, say: Callable[[str], None]) -> Probed:
    """Raises ``SetupError`` where the provider does not work here, ``EnvError`` for a desktop that
    fails."""
    await provider.start()
    try:
        boots = [await _boot(provider, f"boot{n}", say) for n in range(plan.num_boots)]
        cold = await _resets(provider, plan, 0, say)
        warm = await _resets(provider, plan, 1, say)
        await provider.start()  # a pool closes its provider
        shots, actions = await _latencies(provider, plan, say)
        bare, window = await _memory(provider, plan, say)
    finally:
        for desktop in await provider.find():
            await provider.destroy(desktop.desktop_id)
        await provider.close()
    return Probed(
        boot_s=[boot_s for boot_s, _ in boots],
        destroy_s=[end_s for _, end_s in boots],
        reset_cold_s=[reset_s for _, reset_s in cold],
        reset_warm_s=[reset_s for _, reset_s in warm],
        take_warm_s=[take_s for take_s, _ in warm],
        shot_ms=[shot[0] for shot in shots],
        grab_ms=[shot[1] for shot in shots],
        encode_ms=[shot[2] for shot in shots],
        action_ms=actions,
        bare_bytes=bare,
        window_bytes=window,
    )


async def _boot(
    provider: Provider, desktop_id: str, say: Callable[[str], None]
) -> tuple[float, float]:
    say("boot")
    boot_s = await _timed(provider.create(desktop_id))
    return boot_s, await _timed(provider.destroy(desktop_id))


async def _resets(
    provider: Provider, plan: Plan, spares: int, say: Callable[[str], None]
) -> list[tuple[float, float]]:
    """Until a desktop is there, and until it shows the task; seconds."""
    pool = DesktopPool(provider, max_taken=1, spares=spares)
    await pool.start()
    found = []
    try:
        for _ in range(plan.num_resets):
            say("reset, warm pool" if spares else "reset")
            await _until(lambda: pool.stats().num_ready == spares)
            began = time.perf_counter()
            desktop = await pool.take()
            taken_s = time.perf_counter() - began
            async with _talk(desktop) as client:
                await _show(client)
                await client.screenshot()
            found.append((taken_s, time.perf_counter() - began))
            await pool.give_back(desktop)
    finally:
        await pool.close()
    return found


async def _latencies(
    provider: Provider, plan: Plan, say: Callable[[str], None]
) -> tuple[list[tuple[float, float, float]], dict[str, list[float]]]:
    say("screenshots and actions")
    async with _made(provider, ["latency"]) as (desktop,), _talk(desktop) as client:
        await _show(client)
        shots = []
        for _ in range(plan.num_shots):
            began = time.perf_counter()
            shot = await client.screenshot()
            shots.append((1e3 * (time.perf_counter() - began), shot.grab_ms, shot.encode_ms))
        actions = {}
        for name, action in ACTIONS.items():
            timed = [1e3 * await _timed(_act(client, action)) for _ in range(plan.num_actions)]
            actions[name] = timed
        return shots, actions


async def _memory(
    provider: Provider, plan: Plan, say: Callable[[str], None]
) -> tuple[list[float], list[float]]:
    """Bytes of each of several desktops that run at once: what they share counts once."""
    names = [f"memory{n}" for n in range(plan.num_together)]
    say(f"memory of {len(names)} desktops")
    async with _made(provider, names) as desktops:
        bare = [await _bytes(provider, desktop) for desktop in desktops]
        say("memory with a terminal each")
        for desktop in desktops:
            async with _talk(desktop) as client:
                await _show(client)
        return bare, [await _bytes(provider, desktop) for desktop in desktops]


async def _bytes(provider: Provider, desktop: Desktop) -> float:
    usage = await provider.usage(desktop.desktop_id)
    if usage is None:
        raise EnvError(f"the desktop {desktop.desktop_id} ended while it was measured")
    return float(usage.memory_bytes)


async def _show(client: GuestClient) -> None:
    await client.launch(XTERM)
    await client.setup("/wait", PAINTED, timeout_s=90)


async def _act(client: GuestClient, action: Action) -> None:
    refused = await client.act(action)
    if refused is not None:
        raise EnvError(f"the desktop refused {action}: {refused}")


@asynccontextmanager
async def _made(provider: Provider, names: Sequence[str]) -> AsyncIterator[list[Desktop]]:
    try:
        yield [await provider.create(name) for name in names]
    finally:
        for name in names:
            await provider.destroy(name)


@asynccontextmanager
async def _talk(desktop: Desktop) -> AsyncIterator[GuestClient]:
    client = GuestClient(desktop.address, what=f"the desktop {desktop.desktop_id}")
    try:
        yield client
    finally:
        await client.close()


async def _timed(work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(READY_S):
        while not condition():
            await asyncio.sleep(0.02)
