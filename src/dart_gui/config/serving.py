"""The rollout service and what it serves besides the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dart_gui.config.section import NonNegativeInt, PositiveInt, Seconds, Section


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
    update_mode: Literal["drain", "abort"] = "drain"
    """What a worker that is to take new weights does with its requests: ``drain`` finishes them;
    ``abort`` drops them, and they are sent again whole, to the others or after the load. The update is
    quicker, what was generated of them is lost."""
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
