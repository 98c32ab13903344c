"""What is learnt from: data, curation, trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dart_gui.config.section import Fraction, NonNegativeInt, PositiveInt, Section


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


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
    device: str = ""
    """Of the trainer, as ``cuda:3``; empty for ``model.device``. vLLM's workers take the first GPUs."""
    lora_rank: Annotated[int, Field(ge=0, le=512)] = 0
    """Rank of a LoRA adapter that is trained in place of the model's own weights; 0 trains these."""
    lora_alpha: PositiveInt = 32
    """The adapter adds ``lora_alpha / lora_rank * B A`` to a weight."""
    lora_targets: Annotated[list[LoraTarget], Field(min_length=1)] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    """Projections of the language model's layers that get an adapter; the vision tower has none."""
    max_tokens_per_microbatch: PositiveInt = 4096
    """Padded tokens of one forward and backward pass."""
    activation_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass instead of keeping them: a third more
    time, and a fraction of the memory."""
    checkpoint_every: PositiveInt = 10
    """Train steps between durable checkpoints (weights and optimizer state)."""
    keep_checkpoints: PositiveInt = 2
    keep_weights: PositiveInt = 4
    """Published weight folders that stay on disk."""
