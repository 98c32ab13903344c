"""The records that cross module boundaries: frozen, typed, without logic.

Shapes are given as ``[P]`` (prompt tokens), ``[R]`` (response tokens) and ``[T]`` (steps of a
trajectory). Times are Unix seconds. A record is JSON-ready through ``pydantic.TypeAdapter``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class StopReason(StrEnum):
    """Why an episode ended. A closed set; never encoded in the reward."""

    DONE = "done"  # the environment terminated, or the agent said finished()
    INFEASIBLE = "infeasible"  # the agent said call_user(): it declares the task infeasible
    MAX_STEPS = "max_steps"  # the step limit
    MAX_TOKENS = "max_tokens"  # the prompt no longer fits the model's context
    PARSE_ERROR = "parse_error"  # more unparsable replies than allowed
    TIMEOUT = "timeout"  # the episode's wall-clock limit (infrastructure)
    ENV_ERROR = "env_error"  # the environment broke (infrastructure)
    POLICY_ERROR = "policy_error"  # the rollout service failed (infrastructure)

    @property
    def is_infrastructure(self) -> bool:
        """True where the policy is not to blame: such an attempt has no reward and is retried."""
        return self in (StopReason.TIMEOUT, StopReason.ENV_ERROR, StopReason.POLICY_ERROR)


# --- actions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """A position in screen pixels, origin at the top left."""

    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    point: Point
    button: Literal["left", "right"] = "left"
    count: Literal[1, 2] = 1
    kind: Literal["click"] = "click"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hover:
    point: Point
    kind: Literal["hover"] = "hover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drag:
    start: Point
    end: Point
    kind: Literal["drag"] = "drag"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scroll:
    direction: Literal["up", "down", "left", "right"]
    point: Point | None = None
    kind: Literal["scroll"] = "scroll"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hotkey:
    """Keys pressed in order and released in reverse, as in ctrl+c."""

    keys: tuple[str, ...]
    kind: Literal["hotkey"] = "hotkey"


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    key: str
    kind: Literal["press"] = "press"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDown:
    key: str
    kind: Literal["keydown"] = "keydown"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUp:
    key: str
    kind: Literal["keyup"] = "keyup"


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeText:
    """Text typed as text. A trailing newline presses Enter, as UI-TARS has it."""

    text: str
    kind: Literal["type"] = "type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    kind: Literal["wait"] = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The agent says that the task is done."""

    text: str = ""
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallUser:
    """The agent says that the task cannot be done without the user."""

    kind: Literal["call_user"] = "call_user"


Action = (
    Click
    | Hover
    | Drag
    | Scroll
    | Hotkey
    | Press
    | KeyDown
    | KeyUp
    | TypeText
    | Wait
    | Finished
    | CallUser
)


# --- environment ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One instance of a task family."""

    task_id: str  # the family, e.g. "miniwob/click-test"
    seed: int  # the instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the agent sees after a reset or an action."""

    screenshot: bytes  # PNG
    width: int  # pixels of the screenshot, which are the pixels that actions refer to
    height: int
    instruction: str
    terminated: bool = False  # the task ended by its own rule
    action_error: str | None = None  # why the last action could not be carried out


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    reward: float  # finite, in [0, 1]
    success: bool


# --- model calls ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What the trainer models: temperature and a set of ids that may not be sampled, no more."""

    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer of the rollout service, made whole by one worker at one policy version."""

    text: str
    prompt_ids: list[int]  # [P] as the engine used them, image pads expanded
    response_ids: list[int]  # [R] as sampled, the end token included when it was sampled
    rollout_logprobs: list[float]  # [R] under the distribution that was sampled from; foreign: []
    entropies: list[float]  # [R] of that distribution, in nats; foreign: []
    image_hashes: list[str]  # sha256 of each PNG of the prompt, in order
    finish_reason: Literal["stop", "length"]
    policy_version: int
    worker_id: str
    sampling: SamplingParams
    masked_token_ids: list[int] = field(default_factory=list)  # could not be sampled
    foreign: bool = False  # not sampled from this policy: tokenised from text, no behaviour known

    def __post_init__(self) -> None:
        if self.foreign and not self.rollout_logprobs and not self.entropies:
            return
        if not len(self.response_ids) == len(self.rollout_logprobs) == len(self.entropies):
            raise ValueError(
                f"completion of {len(self.response_ids)} response ids came with "
                f"{len(self.rollout_logprobs)} log-probabilities and {len(self.entropies)} entropies"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One observation -> completion -> actions. The unit of training."""

    index: int
    completion: Completion
    actions: list[Action]  # empty where the reply could not be parsed
    parse_error: str | None = None
    action_error: str | None = None
    model_s: float = 0.0  # wall seconds in the model call
    env_s: float = 0.0  # wall seconds in the environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The immutable record of one evaluated episode."""

    trajectory_id: str
    run_id: str
    group_id: str
    task: Task
    attempt: int  # 1 for the first try of the planned episode
    instruction: str
    steps: list[Step]  # [T], at least one
    stop_reason: StopReason
    reward: float  # finite, in [0, 1]
    success: bool
    started_at: float
    ended_at: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"reward of {self.trajectory_id} is {self.reward}, expected [0, 1]")
        if self.stop_reason.is_infrastructure or not self.steps:
            raise ValueError(
                f"{self.trajectory_id} ended by {self.stop_reason} after {len(self.steps)} steps: "
                "a failed attempt is recorded as a failure, not as a trajectory"
            )

    @property
    def version_min(self) -> int:
        return min(step.completion.policy_version for step in self.steps)

    @property
    def version_max(self) -> int:
        return max(step.completion.policy_version for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEpisode:
    """A right and a duty to attempt one member of a group."""

    episode_id: str
    group_id: str
    task: Task
    attempt: int  # of this try, from 1
    seed: int  # of the sampling of this episode's model calls; differs within the group
    group_size: int | None = None  # attempts that the group was planned with
    max_steps: int | None = None  # model calls at most; None: the run's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRef:
    """Weights that the trainer published: a Hugging Face folder and its number."""

    policy_version: int
    path: str
