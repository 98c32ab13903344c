"""What plays an episode: model, agent, environments, runner, and evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dart_gui.config.section import NonNegativeInt, PositiveInt, Seconds, Section


class ModelConfig(Section):
    path: str = "models/tiny-agent"
    """Hugging Face folder of a Qwen2.5-VL-architecture model with tokenizer and chat template."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights, in the engine and in the trainer alike."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU where there is one."""


class AgentConfig(Section):
    name: str = "ui-tars"
    """``ui-tars``, ``qwen3-computer-use`` or ``qwen2.5-computer-use`` (tool calls), or your own as
    ``package.module:class`` or ``folder/file.py:class``."""
    max_images: PositiveInt = 5
    """Screenshots in the prompt at most; older ones leave, their texts stay."""
    max_texts: PositiveInt = 35
    """Earlier replies in the prompt at most."""
    trim: Literal["slide", "block"] = "slide"
    """``slide``: the oldest screenshot leaves at each step, as UI-TARS was served.
    ``block``: screenshots grow to the limit, then several leave at once, so that consecutive prompts
    share their prefix."""
    language: str = "English"
    """Language that the prompt asks thoughts to be written in."""


class EnvConfig(Section):
    suite: str = "miniwob"
    """Name of a suite of tasks, or your own as ``package.module:object`` or ``folder/file.py:object``.
    OSWorld's is ``osworld@FOLDER``, or ``osworld@FOLDER/LIST.json``, with its evaluation_examples."""
    tasks: list[str] = []
    """Task ids; empty for the suite's default tasks."""
    num_envs: PositiveInt = 8
    """Browser pages, or desktops, at once."""
    num_browsers: PositiveInt = 1
    """Browser processes that share the pages."""
    browser: str = ""
    """Chromium executable; empty to look for one."""
    action_ms: PositiveInt = 300
    """Page milliseconds that pass after each action; the page's clock stands still otherwise."""
    wait_ms: PositiveInt = 2000
    """Milliseconds that pass for wait(): of the page's clock, or on a desktop."""
    timeout_s: Seconds = 20.0
    """Wall-clock limit of one browser operation; a page that exceeds it is replaced."""
    servers: list[str] = []
    """URLs of env servers to have desktops from; empty to make them on this machine."""
    server_token_file: str = ""
    """File that holds the token for them."""
    desktop_width: PositiveInt = 1280
    """Pixels of a desktop made here; an env server has its own."""
    desktop_height: PositiveInt = 720
    desktop_spares: NonNegativeInt = 1
    """Desktops that are booted ahead, besides ``num_envs``."""
    desktop_memory_mb: PositiveInt = 2048
    """Limit of each desktop made here, where the machine can limit."""
    react_ms: NonNegativeInt = 500
    """Milliseconds for a desktop's screen to show a first change after an action."""
    settle_ms: PositiveInt = 100
    """Milliseconds without a change until a desktop's screen counts as settled."""
    settle_limit_ms: PositiveInt = 2000
    """Milliseconds after which a screenshot is taken of a desktop that never settles."""
    osworld_cache: str = "data/osworld-cache"
    """Folder of the files that OSWorld's tasks download; ``dart-gui osworld mirror`` fills it."""
    osworld_offline: bool = False
    """What is not in that folder is an error, instead of a download."""
    osworld_python: str = ".venv-osworld/bin/python"
    """Interpreter that has ``desktop-env``; ``scripts/setup_osworld.py`` makes it."""
    osworld_evaluate_s: Seconds = 300.0
    """Wall-clock limit of one evaluation, and limit of its CPU time."""
    osworld_memory_mb: PositiveInt = 4096
    """Address space of one evaluation."""
    osworld_password: str = "password"
    """Of the desktop's user, for what the tasks' set-up does with sudo."""
    provider: Literal["xvfb", "docker"] = "xvfb"
    """Who makes the desktops of this machine; ``docker`` has the keys that follow, and needs
    ``pip install 'dart-gui[docker]'``."""
    docker_host: str = ""
    """Socket of Docker or Podman, as ``unix:///path``; empty for DOCKER_HOST, or Docker's own."""
    docker_profile: Literal["desktop", "osworld"] = "desktop"
    """``desktop`` is the image of ``deploy/desktop``; ``osworld`` OSWorld's virtual machine in a
    container."""
    docker_image: str = ""
    """Any image that serves OSWorld's guest API; empty for the profile's."""
    docker_guest_port: PositiveInt = 5000
    """Port of the guest API in the container; it is published on loopback only."""
    docker_disk: str = ""
    """The qcow2 file of the profile ``osworld``, which is not written to."""
    docker_kvm: Literal["auto", "on", "off"] = "auto"
    """For the profile ``osworld``: ``auto`` uses KVM where a probe shows that it works, ``on`` refuses to
    start where it does not."""
    docker_cpus: float = Field(default=2.0, gt=0)
    """Processors of one container at most."""
    docker_max_processes: PositiveInt = 1024
    """Processes and threads of one container at most."""
    docker_shm_mb: PositiveInt = 256
    """Size of /dev/shm."""
    docker_disk_mb: NonNegativeInt = 512
    """For the profile ``desktop``: size of the home, which is in the container's memory, with half of it
    for /tmp and the rest read-only. 0 for an image that writes elsewhere: on the daemon's disk, without a
    limit."""
    docker_network: str = ""
    """Network of the containers; empty for one of our own, on which they do not reach each other."""
    docker_env: list[str] = []
    """More variables, as ``NAME=value``."""
    docker_volumes: list[str] = []
    """Folders of this machine, as ``/here:/there:ro``."""
    docker_devices: list[str] = []
    """Devices, as ``/dev/dri``."""
    docker_boot_s: Seconds = 300.0
    """A container whose guest does not answer by then is removed."""


class RunnerConfig(Section):
    num_slots: PositiveInt = 8
    """Episodes at once; each holds one environment."""
    max_steps: PositiveInt = 8
    """Model calls of one episode at most."""
    max_parse_errors: NonNegativeInt = 1
    """Unparsable replies that an episode survives."""
    max_attempts: PositiveInt = 3
    """Tries of one planned episode when the infrastructure fails."""
    episode_timeout_s: Seconds = 120.0
    """Wall-clock limit of one attempt."""


class EvalConfig(Section):
    num_episodes: PositiveInt = 400
    """Held-out episodes, spread evenly over the tasks."""
    temperature: float = Field(default=1.0, ge=0)
    """0 for greedy decoding."""
    before_after: bool = True
    """Evaluate the initial and the final policy, sampled and greedy, around a training run."""
    every: NonNegativeInt = 0
    """Policy versions from one evaluation while training to the next; 0 for none. Each evaluates one
    version, by a worker and a browser of its own, while training goes on. The best one is kept as
    ``checkpoints/best``."""
    every_episodes: PositiveInt = 100
    """Held-out episodes of an evaluation while training; the same instances each time."""
    every_envs: PositiveInt = 4
    """Browser pages, and so episodes at once, of an evaluation while training."""
    nice: Annotated[int, Field(ge=0, le=19)] = 10
    """CPU priority of an evaluation while training: 0 competes with training as an equal, 19 takes
    what training leaves over."""


class ApiConfig(Section):
    base_url: str = ""
    """An OpenAI-compatible server whose model ``dart-gui eval --agent openai`` evaluates."""
    model: str = ""
    """The model's name there."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; without a value none is sent."""
    max_tokens: PositiveInt = 1024
    """Tokens of one reply at most."""
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The parameter that says so; some models want the other one."""
    send_seed: bool = True
    """Send the seed of each sampling. Off for servers that refuse it."""
    timeout_s: Seconds = 300.0
    """A reply that has not come by then, repetitions after 429 and 5xx included, fails."""
    min_pixels: PositiveInt = 56 * 56
    """Area limits of the image after the model's own resizing, which say what coordinates in pixels
    mean. The defaults are those of Qwen2.5-VL and UI-TARS-1.5; a grammar of 1000 x 1000 needs none."""
    max_pixels: PositiveInt = 16384 * 28 * 28
    factor: PositiveInt = 28
    """Its sides are multiples of this."""
    folder: str = ""
    """Folder of the model, where it is at hand: the limits, and a transform of the screenshot, are taken
    from there."""
