"""One typed configuration tree: TOML, dotted overrides, unknown keys refused, cross-field checks.

``load(path, ["train.lr=1e-4"])`` gives a frozen :class:`Config`; ``dump(config)`` gives the TOML text
that a run keeps as ``config.toml``. A key that was renamed gets no alias: a key whose meaning changed
in silence misconfigures a run.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dart_gui.errors import ConfigError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RunConfig(Section):
    dir: str = "runs"
    """Folder that holds one folder per run."""
    seed: int = 0
    """Seed of the task sampler and of the sampling of every episode."""
    max_train_steps: NonNegativeInt = 0
    """Stop after this many train steps; 0 for no such limit."""
    max_time_s: float = Field(default=1200.0, gt=0)
    """Stop after this many seconds of training (time while the run was stopped does not count)."""
    target_success: Fraction = 0.0
    """Stop once the success rate reaches this: that of an evaluation while training where there are
    such (``eval.every``), else that of the last 200 training episodes. 0 for no target."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations while training without progress; where there are none, after
    this many train steps in which the success of the last 200 training episodes made none. 0 for
    never."""
    min_delta: Fraction = 0.0
    """Progress is a success rate that exceeds the best one so far by more than this."""


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
    """Name of a suite of tasks, or your own as ``package.module:object`` or ``folder/file.py:object``."""
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


class RolloutConfig(Section):
    engine: Literal["transformers", "vllm", "fake"] = "transformers"
    """``vllm`` runs one vLLM server per worker, see ``[vllm]``; ``fake`` has no model."""
    num_workers: PositiveInt = 1
    """Worker processes, each with a copy of the weights."""
    host: str = "127.0.0.1"
    port: NonNegativeInt = 0
    """0 for a free one."""
    url: str = ""
    """Use the service at this URL instead of starting one."""
    token_file: str = ""
    """File that holds the bearer token; empty for ``token`` in the run's folder."""
    temperature: float = Field(default=1.0, gt=0)
    """Of training rollouts. top_p, top_k and penalties do not exist here: the trainer does not
    model them."""
    max_tokens: PositiveInt = 64
    """Tokens of one reply at most."""
    max_context: PositiveInt = 2048
    """Tokens of prompt and reply together at most."""
    max_batch_size: PositiveInt = 16
    """Requests that one worker decodes at once."""
    max_unavailable: PositiveInt = 1
    """Workers that may be out of service for an update at once."""
    request_timeout_s: Seconds = 60.0
    """A request that has no answer by then fails."""
    max_queue: NonNegativeInt = 4096
    """Requests that wait for a worker at most; further ones are answered 429 with Retry-After.
    0 for no limit."""
    max_imbalance: NonNegativeInt = 4
    """A trajectory leaves its worker, and the prefix cached there, when that worker has more than
    this many requests more than the least loaded one."""
    health_interval_s: Seconds = 10.0
    """A worker that does not answer three health checks in a row, this far apart, is started again."""
    image_cache_mb: PositiveInt = 256
    """Screenshots that the service remembers by hash."""


class VllmConfig(Section):
    executable: str = "vllm"
    """``vllm`` of the environment that has it, which need not be this one."""
    urls: list[str] = []
    """Servers that run already (``http://...`` or ``unix:<path>``), one per worker, instead of starting
    them. They need
    ``VLLM_SERVER_DEV_MODE=1`` and ``--logprobs-mode processed_logprobs``, and see the run's folder
    under the same path."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs of one worker. Worker ``i`` takes the ``i``-th group of the visible ones."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Of each GPU's memory, for weights and KV cache."""
    top_logprobs: Annotated[int, Field(ge=1, le=100)] = 20
    """Alternatives per token from which the entropy of a step is estimated (a lower bound: what is
    left counts as one outcome)."""
    args: list[str] = []
    """Further flags of ``vllm serve``; they win over those above."""
    env: list[str] = []
    """``NAME=value``, environment of the servers."""
    start_timeout_s: Seconds = 600.0
    """Time for a server to load the model and answer."""


class CompatConfig(Section):
    enabled: bool = False
    """The rollout service answers the routes of the published model service too."""
    save_dir: str = ""
    """Folder for the published on-disk layout of trajectories; empty to write none."""
    checkpoint_roots: list[str] = []
    """Folders inside which the paths of /reload must lie."""
    token_in_url: bool = True
    """Accept the token as ``/t/<token>/...``, for clients that cannot send a header."""
    get_shutdown: bool = False
    """/shutdown answers GET too, as the published service does, and as any link can."""


class SessionsConfig(Section):
    enabled: bool = False
    """Foreign agent programs play the episodes, through the rollout service (``POST /sessions``),
    instead of the runner."""
    tasks: list[str] = []
    """Task ids of their own; a session is told which one it is to attempt, and its seed."""
    timeout_s: Seconds = 600.0
    """A session without a call for so long is a failed attempt."""
    max_open: PositiveInt = 1024
    """Sessions at once."""


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


class DataConfig(Section):
    ledger: str = ""
    """SQLAlchemy URL; empty for SQLite in the run's folder."""
    blobs: str = ""
    """fsspec URL; empty for ``blobs`` in the run's folder."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Attempts at one (task_id, seed), compared with each other."""
    max_staleness: NonNegativeInt = 3
    """Trainer version at consumption minus policy version of a step, at most."""
    max_uses: PositiveInt = 1
    """Times that a trajectory is trained at most."""


class CurationConfig(Section):
    skip_zero_variance: bool = True
    """Groups whose rewards are all equal (tolerance 1e-6) are not trained."""
    advantage: Literal["trajectory", "step"] = "trajectory"
    """Statistics of a group over its trajectories, or over all of their steps as the paper has it."""
    normalize_std: bool = True
    """Divide by the group's standard deviation (GRPO); off leaves the mean only (Dr. GRPO)."""
    rollout_rule: Literal["fixed", "published", "beta"] = "fixed"
    """Attempts of a group. ``fixed``: ``data.group_size``. ``published``: fewer where the success rate
    is high. ``beta``: as many as a group needs to have both outcomes, within a mean of
    ``data.group_size``."""
    min_rollouts: Annotated[int, Field(ge=2)] = 2
    max_rollouts: NonNegativeInt = 0
    """0: ``data.group_size`` for ``published``, twice that for ``beta``."""
    rollout_threshold: Fraction = 0.6
    """``published``: success rate from which a group shrinks."""
    both_outcomes: Fraction = 0.9
    """``beta``: wanted chance that a group has a success and a failure."""
    window_versions: PositiveInt = 10
    """Policy versions back to which a task's success rate looks."""
    min_window: PositiveInt = 16
    """Episodes that a success rate counts at least, however old."""
    step_limit: Literal["fixed", "dynamic"] = "fixed"
    """``dynamic``: a task's limit follows the lengths of its successes, up to ``runner.max_steps``."""
    step_quantile: Fraction = 0.9
    """Of the lengths of a task's past successes."""
    step_slack: PositiveInt = 1
    """Steps that are allowed on top of it."""
    step_floor: PositiveInt = 2
    task_order: Literal["round_robin", "signal"] = "round_robin"
    """``signal``: tasks by expected learning signal per second of environment time."""
    task_floor: Annotated[float, Field(gt=0, le=1)] = 0.25
    """``signal``: share of the groups that is spread evenly over all tasks."""
    pool: str = ""
    """Folder of an experience pool (``dart-gui pool``): a group in which all failed borrows a success."""
    pool_online: bool = False
    """Such a group borrows from the run's own successes too."""
    pool_match: Literal["task", "instance"] = "task"
    """A borrowed success is of the same task, or of the same seed as well."""
    pool_weight: Fraction = 1.0
    """Of a borrowed success in the loss, relative to a sampled trajectory."""
    pool_share: Fraction = 0.25
    """Share of a batch's loss weight that borrowed successes have at most."""
    entropy_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a group's steps that is trained: those of the highest entropy (the paper: 0.8)."""


class TrainConfig(Section):
    groups_per_step: PositiveInt = 8
    """Groups with variance that one train step takes."""
    lr: float = Field(default=1e-4, ge=0)
    warmup_steps: NonNegativeInt = 5
    lr_end: Fraction = 1.0
    """Learning rate at the end of the run, as a share of ``lr``: it falls linearly with the share of
    ``run.max_train_steps`` or ``run.max_time_s`` that is over. 1 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    """Global gradient norm."""
    clip_low: Fraction = 0.2
    clip_high: float = Field(default=0.28, ge=0)
    """Asymmetric clip: the ratio stays within [1 - clip_low, 1 + clip_high]."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Bound c of the loss for negative advantages: at most -c * A."""
    tis_cap: float = Field(default=2.0, ge=0)
    """Truncated importance sampling: weight min(exp(old - rollout), tis_cap); 0: no weight."""
    loss: Literal["grpo", "gspo", "cispo", "dppo"] = "grpo"
    """``grpo``: token clip. ``gspo``: clip of the step's geometric-mean ratio. ``cispo``: clipped weight,
    no token loses its gradient. ``dppo``: mask by the change of a token's probability. The last two
    weigh by pi / rollout and take no ``tis_cap``."""
    gspo_clip: tuple[float, float] = (3e-4, 4e-4)
    """Low and high; a mean over the tokens moves far less than one token does."""
    cispo_cap: float = Field(default=5.0, gt=0)
    dppo_delta: Fraction = 0.2
    """A token is masked once its probability has moved this far in the direction of its advantage."""
    dppo_cap: float = Field(default=20.0, gt=0)
    token_band: tuple[float, float] = (0.0, 0.0)
    """IcePop: only tokens with low <= old / rollout <= high are trained, e.g. [0.5, 2.0]; high 0: off."""
    step_band: float = Field(default=0.0, ge=0, lt=1)
    """Steps whose geometric-mean old / rollout is off 1 by more are not trained, e.g. 0.03; 0: off."""
    thought_weight: float = Field(default=1.0, ge=0)
    """Of the loss of a reply's tokens before ``Action:``."""
    action_weight: float = Field(default=1.0, ge=0)
    coordinate_weight: float = Field(default=1.0, ge=0)
    """Of the numbers of an action's points."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the k3 KL to the initial policy; 0 loads no reference model."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus over response tokens."""
    num_minibatches: PositiveInt = 1
    """Optimizer updates per train step; more than one makes the clip bite."""
    freeze: list[str] = []
    """Parameters that are not trained: all whose name contains one of these, e.g. ``lm_head``,
    ``embed_tokens``, ``visual``."""
    max_tokens_per_microbatch: PositiveInt = 4096
    """Padded tokens of one forward and backward pass."""
    checkpoint_every: PositiveInt = 10
    """Train steps between durable checkpoints (weights and optimizer state)."""
    keep_checkpoints: PositiveInt = 2
    keep_weights: PositiveInt = 4
    """Published weight folders that stay on disk."""


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


AlarmName = Literal[
    "mismatch_kl",
    "entropy_collapse",
    "no_variance",
    "idle",
    "nonfinite_gradient",
    "success_drop",
]


class AlarmsConfig(Section):
    mismatch_kl: float = Field(default=0.1, ge=0)
    """Of the KL between the policy that sampled and the trainer's, per token, mean of 5 train steps;
    cleared below half of it. 0 for no such alarm."""
    entropy_fraction: Fraction = 0.2
    """Of the entropy of the first 5 train steps: alarm where the mean of the last 5 is below this
    share, cleared at 1.5 times it. 0 for no such alarm."""
    no_variance_groups: NonNegativeInt = 32
    """Alarm where this many groups in a row had equal rewards throughout, so that none of them can be
    learnt from; cleared by the first that differs. 0 for no such alarm."""
    idle_s: float = Field(default=300.0, ge=0)
    """Alarm where the trainer, the runner or a rollout worker had nothing to do for so long; cleared
    when it works again. 0 for no such alarm."""
    nonfinite_gradient: bool = True
    """Alarm at an update that was left out since its gradient was not finite; cleared after 10 train
    steps without one."""
    success_drop: Fraction = 0.25
    """Alarm where the success of the last 200 training episodes is so far below its best; cleared at
    half of that. 0 for no such alarm."""
    stop_on: list[AlarmName] = []
    """Alarms that end the training."""


class LaunchConfig(Section):
    threads: PositiveInt = 1
    """torch threads of each process. More than one on busy cores is slower, not faster."""
    max_restarts: NonNegativeInt = 5
    """Times that the supervisor restarts one process in a row before it gives up. One that ran for
    five minutes is counted anew."""
    stop_timeout_s: Seconds = 20.0
    """Time for a process to end by itself before it is killed."""
    tensorboard: bool = True


class Config(Section):
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    agent: AgentConfig = AgentConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    vllm: VllmConfig = VllmConfig()
    compat: CompatConfig = CompatConfig()
    sessions: SessionsConfig = SessionsConfig()
    runner: RunnerConfig = RunnerConfig()
    data: DataConfig = DataConfig()
    curation: CurationConfig = CurationConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    alarms: AlarmsConfig = AlarmsConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _cross_checks(self) -> Config:
        if self.runner.num_slots > self.env.num_envs:
            raise ValueError(
                f"runner.num_slots = {self.runner.num_slots} episodes would wait for "
                f"env.num_envs = {self.env.num_envs} environments: raise env.num_envs or lower "
                "runner.num_slots"
            )
        if self.rollout.max_tokens >= self.rollout.max_context:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} leaves no room for a prompt in "
                f"rollout.max_context = {self.rollout.max_context}"
            )
        if self.rollout.max_unavailable > self.rollout.num_workers:
            raise ValueError(
                f"rollout.max_unavailable = {self.rollout.max_unavailable} exceeds "
                f"rollout.num_workers = {self.rollout.num_workers}"
            )
        if self.vllm.urls and len(self.vllm.urls) != self.rollout.num_workers:
            raise ValueError(
                f"vllm.urls names {len(self.vllm.urls)} servers for rollout.num_workers = "
                f"{self.rollout.num_workers}: one server per worker"
            )
        if self.sessions.enabled and not self.sessions.tasks:
            raise ValueError("sessions.enabled wants sessions.tasks: name at least one task")
        if wrong := [item for item in self.vllm.env if "=" not in item]:
            raise ValueError(f"vllm.env: {wrong[0]!r} is not of the form NAME=value")
        if self.train.num_minibatches > self.train.groups_per_step:
            raise ValueError(
                f"train.num_minibatches = {self.train.num_minibatches} exceeds "
                f"train.groups_per_step = {self.train.groups_per_step}"
            )
        if self.curation.max_rollouts and self.curation.max_rollouts < self.curation.min_rollouts:
            raise ValueError(
                f"curation.max_rollouts = {self.curation.max_rollouts} is below "
                f"curation.min_rollouts = {self.curation.min_rollouts}"
            )
        if self.rollout.max_context > self.train.max_tokens_per_microbatch:
            raise ValueError(
                f"a sample of rollout.max_context = {self.rollout.max_context} tokens would not fit "
                f"train.max_tokens_per_microbatch = {self.train.max_tokens_per_microbatch}"
            )
        return self


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (None for the defaults) and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is refused.
    """
    tree: dict[str, Any] = {} if path is None else _read_toml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    return from_dict(tree, source=str(path) if path else "the defaults")


def from_dict(tree: Mapping[str, Any], *, source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(map(_explain, error.errors()))) from None


def dump(config: Config) -> str:
    """The resolved tree as TOML."""
    lines: list[str] = []
    for section, values in config.model_dump(mode="json").items():
        lines += [f"[{section}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines += [""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    """JSON is TOML but for two things: surrogate pairs, and DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}. "
            "Give the path of a TOML file, such as configs/miniwob-tiny.toml."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, eq, text = override.partition("=")
    section, dot, key = dotted.partition(".")
    if not (eq and dot and section and key):
        raise ConfigError(
            f"the override {override!r} is not of the form section.key=value, e.g. train.lr=1e-4"
        )
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section} is not a table, so {dotted} cannot be set")
    table[key] = _override_value(text)


def _override_value(text: str) -> Any:
    """TOML where it parses as TOML (numbers, booleans, lists, quoted text), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Any) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        nearest = _nearest(error["loc"])
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"unknown key {path}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {error['input']!r})" if path else message


def _nearest(loc: tuple[str | int, ...]) -> str | None:
    """The known key most like the unknown one: first within its section, then anywhere."""
    known = {
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    wanted = ".".join(map(str, loc))
    if len(loc) == 1:
        return next(iter(difflib.get_close_matches(wanted, list(Config.model_fields))), None)
    key_only = {name.split(".")[1]: name for name in sorted(known)}
    if loc[-1] in key_only:
        return key_only[str(loc[-1])]
    same_section = [name for name in known if name.startswith(f"{loc[0]}.")]
    for names in (same_section, list(known)):
        if match := difflib.get_close_matches(wanted, sorted(names), n=1):
            return match[0]
    match = difflib.get_close_matches(str(loc[-1]), list(key_only), n=1)
    return key_only[match[0]] if match else None
