"""The whole configuration, and what its sections demand of each other."""

from __future__ import annotations

from pydantic import model_validator

from dart_gui.config.episodes import (
    AgentConfig,
    ApiConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    RunnerConfig,
)
from dart_gui.config.learning import CurationConfig, DataConfig, TrainConfig
from dart_gui.config.operation import AlarmsConfig, LaunchConfig, RunConfig
from dart_gui.config.section import Section
from dart_gui.config.serving import CompatConfig, RolloutConfig, SessionsConfig, VllmConfig


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
    api: ApiConfig = ApiConfig()
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
        if self.api.min_pixels > self.api.max_pixels:
            raise ValueError(
                f"api.min_pixels = {self.api.min_pixels} exceeds api.max_pixels = "
                f"{self.api.max_pixels}"
            )
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
