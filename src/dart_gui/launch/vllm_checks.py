"""Is a configuration with ``rollout.engine = "vllm"`` fit for this machine, as far as that can be known
without starting a server?"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from dart_gui.agent.geometry import ImageLimits, smart_resize
from dart_gui.config import Config
from dart_gui.errors import ConfigError, SetupError
from dart_gui.model.memory import GPU_KINDS_GB, read_size
from dart_gui.rollout.engines.vllm_server import find_executable

SCREEN = (1080, 1920)  # height and width of a desktop
_TIMEOUT_S = 120


def check_servers(config: Config) -> str:
    """The executable runs, or every server answers.

    Raises:
        SetupError: it does not.
    """
    if config.rollout.engine != "vllm":
        return f"not used: rollout.engine is {config.rollout.engine}"
    if config.vllm.urls:
        return "; ".join(map(_describe_server, config.vllm.urls))
    executable = find_executable(config.vllm.executable)
    try:
        done = subprocess.run(
            [executable, "--version"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"{executable} --version failed: {error}") from None
    return f"{executable}, vLLM {done.stdout.split()[-1] if done.stdout.split() else '?'}"


def _describe_server(url: str) -> str:
    if url.startswith("unix:"):
        if not Path(url[5:]).is_socket():
            raise SetupError(f"vllm.urls: there is no socket {url[5:]}")
        return url
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/v1/models", timeout=5) as answer:
            model = json.load(answer)["data"][0]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SetupError(
            f"vllm.urls: {url} does not answer as a vLLM server does: {error}"
        ) from None
    return f"{url} serves {model.get('id')}, {model.get('max_model_len')} tokens"


def check_memory(config: Config) -> str:
    """What fits, by kind of GPU."""
    if config.rollout.engine != "vllm":
        return f"not used: rollout.engine is {config.rollout.engine}"
    return "; ".join(memory_lines(config))


def memory_lines(config: Config) -> list[str]:
    """Raises:
    ConfigError: there is no model folder to read dimensions from.
    """
    size = read_size(Path(config.model.path))
    dtype, num_gpus = config.model.dtype, config.vllm.tensor_parallel_size
    lines = [
        f"{size.num_parameters / 1e9:.2f} billion parameters, {size.weights_gb(dtype):.1f} GB as "
        f"{dtype}; {size.kv_bytes_per_token(dtype) / 1024:.0f} KiB of KV cache per token"
    ]
    for kind, gpu_gb in GPU_KINDS_GB.items():
        tokens = size.cached_tokens(
            gpu_gb,
            dtype=dtype,
            num_gpus=num_gpus,
            utilization=config.vllm.gpu_memory_utilization,
        )
        count = tokens // config.rollout.max_context
        fits = f"{count} full contexts" if count else "too small"
        lines.append(f"{num_gpus} x {kind}: {fits}")
    return lines


def check_context(config: Config) -> str:
    """The history window of a desktop agent fits the context, at one screenshot's real size.

    Raises:
        SetupError: it does not.
    """
    limits = ImageLimits.from_model(Path(config.model.path))
    height, width = smart_resize(*SCREEN, limits)
    per_image = height * width // limits.factor**2
    images = config.agent.max_images * per_image
    room = config.rollout.max_context - config.rollout.max_tokens - images
    text = (
        f"a screen of {SCREEN[1]} x {SCREEN[0]} is {per_image} tokens, {config.agent.max_images} of "
        f"them {images}; {room} are left for text"
    )
    if config.rollout.engine == "vllm" and room < 0:
        raise SetupError(f"{text}: raise rollout.max_context or lower agent.max_images")
    return text


def dry_run_lines(config: Config) -> list[str]:
    """Comments for ``train --dry-run``."""
    if config.rollout.engine != "vllm":
        return []
    try:
        found = [*memory_lines(config), check_context(config)]
    except (ConfigError, SetupError) as error:
        found = [f"not known yet: {error}"]
    return [f"# vllm: {line}" for line in found]
