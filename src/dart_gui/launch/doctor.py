"""``dart-gui doctor``: is this machine ready to train with this configuration?

Each check gives what it found, or raises the ``DartError`` whose text is the advice; the next one
runs all the same.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dart_gui.config import Config
from dart_gui.errors import DartError, SetupError, boundary
from dart_gui.launch import preflight, training_memory, vllm_checks

MIN_CORES = 2
MIN_MEMORY_GB = 4.0
MIN_DISK_GB = 2.0
MAX_MEAN_DIFFERENCE = 1e-3  # nats; beyond it every update is biased
GB = 2**30

Check = Callable[[Config], str]


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    ok: bool
    text: str  # what was found, or what to do


def run(console: Console, config: Config) -> int:
    """Print a table; 0 where all is well, else 1."""
    # transformers draws a bar for each model that it loads.
    os.environ.setdefault("TQDM_DISABLE", "1")
    findings = []
    with console.status("checking") as status:
        for name, check in CHECKS:
            status.update(f"checking: {name}")
            findings.append(examine(name, check, config))
    console.print(table(findings))
    failed = sum(not finding.ok for finding in findings)
    if failed:
        console.print(f"[red]{failed} of {len(findings)} checks failed[/]; see the advice above")
        return 1
    console.print("[green]this machine is ready[/]")
    return 0


def examine(name: str, check: Check, config: Config) -> Finding:
    try:
        with boundary(SetupError, f"the check of {name} broke"):
            return Finding(name, True, check(config))
    except DartError as error:
        return Finding(name, False, str(error))


def table(findings: Sequence[Finding]) -> Table:
    result = Table(box=None, padding=(0, 1))
    for title in ("check", "", "found"):
        result.add_column(title, overflow="fold")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[bold red]FAIL[/]"
        result.add_row(finding.name, mark, finding.text)
    return result


# --- the checks --------------------------------------------------------------------------------


def check_machine(config: Config) -> str:
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    if memory < MIN_MEMORY_GB:
        raise SetupError(
            f"{memory:.1f} GB of memory; a run of the tiny agent takes about {MIN_MEMORY_GB:g} GB. "
            "Lower env.num_envs and runner.num_slots."
        )
    few = "" if cores >= MIN_CORES else f" (fewer than {MIN_CORES}: training will be slow)"
    return f"{platform.system()} {platform.machine()}, {cores} cores{few}, {memory:.1f} GB memory"


def check_disk(config: Config) -> str:
    preflight.check_writable(Path(config.run.dir))
    folder = Path(config.run.dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GB
    if free < MIN_DISK_GB:
        raise SetupError(
            f"{free:.1f} GB free at {folder}; a run wants {MIN_DISK_GB:g} GB. Make room, or set "
            "run.dir to another disk."
        )
    return f"{free:.0f} GB free at {folder}"


def check_python(config: Config) -> str:
    packages = ("torch", "transformers", "playwright", "miniwob")
    try:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    except importlib.metadata.PackageNotFoundError as error:
        raise SetupError(f"the package {error.name} is missing: run `make setup`") from None
    return f"Python {platform.python_version()}, {', '.join(versions)}"


def check_device(config: Config) -> str:
    from dart_gui.model.policy_model import pick_device

    found = pick_device("auto").type
    if config.model.device == "cuda" and found != "cuda":
        raise SetupError("model.device is cuda and torch sees no GPU: set it to auto or cpu")
    used = found if config.model.device == "auto" else config.model.device
    return f"{used}, {config.launch.threads} thread(s) per process, {config.model.dtype}"


def check_tasks(config: Config) -> str:
    return f"{config.env.suite}: {', '.join(preflight.check_tasks(config))}"


def check_browser(config: Config) -> str:
    return preflight.check_browser(config)


def check_page(config: Config) -> str:
    """One page of the first task, timed."""
    return asyncio.run(time_page(config))


async def time_page(config: Config) -> str:
    from dart_gui.env.suites import eval_seed, open_cluster
    from dart_gui.types import Click, Point, Task

    task = Task(task_id=preflight.check_tasks(config)[0], seed=eval_seed(0))
    small = config.env.model_copy(update={"num_envs": 1, "num_browsers": 1})
    cluster = open_cluster(small)
    started = time.perf_counter()
    await cluster.start()
    try:
        start_s = time.perf_counter() - started
        async with cluster.lease() as env:
            reset_s, observation = await _timed(env.reset(task))
            step_s, _ = await _timed(env.step(Click(point=Point(80.0, 190.0))))
    finally:
        await cluster.close()
    return (
        f"start {1000 * start_s:.0f} ms, first reset {1000 * reset_s:.0f} ms, step "
        f"{1000 * step_s:.0f} ms, {observation.width} x {observation.height} pixels"
    )


async def _timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = await work
    return time.perf_counter() - started, result


def check_model(config: Config) -> str:
    from dart_gui.agent.geometry import ImageLimits
    from dart_gui.agent.transforms import load_transform
    from dart_gui.model.folder import check_model_folder

    path = Path(config.model.path)
    check_model_folder(path)
    limits = ImageLimits.from_model(path)
    transform = load_transform(path)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**20
    return (
        f"{path}, {size:.1f} MB, images of {limits.min_pixels} to {limits.max_pixels} pixels, "
        f"transform {getattr(transform, '__name__', 'given')}"
    )


def check_template(config: Config) -> str:
    """The model loads, and its chat template renders the prompt of a first step."""
    from dart_gui.agent.registry import make_agent
    from dart_gui.model.policy_model import PolicyModel
    from dart_gui.types import Observation

    path = Path(config.model.path)
    model = PolicyModel(path, device=config.model.device, dtype=config.model.dtype)
    width, height = 160, 210
    first = Observation(
        screenshot=blank_png(width, height), width=width, height=height, instruction="Click OK."
    )
    prompt = make_agent(path, config.agent).start(first).prompt()
    grids = {name: model.pixels(png).grid for name, png in prompt.images.items()}
    num_tokens = len(model.render(prompt.messages, grids).prompt_ids)
    room = config.rollout.max_context - config.rollout.max_tokens - num_tokens
    if room < 0:
        raise SetupError(
            f"the prompt of a first step has {num_tokens} tokens, which with rollout.max_tokens = "
            f"{config.rollout.max_tokens} exceeds rollout.max_context = "
            f"{config.rollout.max_context}: raise it"
        )
    return f"the prompt of a first step has {num_tokens} tokens; {room} are left for history"


def blank_png(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, "PNG")
    return buffer.getvalue()


def check_parity(config: Config) -> str:
    """Rollout and trainer give the same tokens the same probability."""
    from dart_gui.train.parity import measure

    found = measure(Path(config.model.path), device=config.model.device, dtype=config.model.dtype)
    text = (
        f"mean |difference| {found.mean_abs:.1e}, at most {found.max_abs:.1e}, over "
        f"{found.num_tokens} tokens"
    )
    if config.model.dtype == "float32" and not found.mean_abs <= MAX_MEAN_DIFFERENCE:
        raise SetupError(
            f"{text}; expected at most {MAX_MEAN_DIFFERENCE:g}. Training on such log-probabilities "
            "is biased: check the versions of torch and transformers against the lock file."
        )
    return text


def check_ports(config: Config) -> str:
    rollout = config.rollout
    preflight.check_port(rollout.host, rollout.port, service_url=rollout.url)
    if rollout.url:
        return f"the rollout service is at {rollout.url}"
    with socket.socket() as probe:
        probe.bind((rollout.host, rollout.port))
        return (
            f"{rollout.host}, {'a free port such as ' * (not rollout.port)}{probe.getsockname()[1]}"
        )


CHECKS: tuple[tuple[str, Check], ...] = (
    ("machine", check_machine),
    ("disk", check_disk),
    ("packages", check_python),
    ("device", check_device),
    ("port", check_ports),
    ("tasks", check_tasks),
    ("browser", check_browser),
    ("page", check_page),
    ("model", check_model),
    ("prompt", check_template),
    ("log-probabilities", check_parity),
    ("vllm", vllm_checks.check_servers),
    ("vllm memory", vllm_checks.check_memory),
    ("training memory", training_memory.describe),
    ("desktop screens", vllm_checks.check_context),
)
