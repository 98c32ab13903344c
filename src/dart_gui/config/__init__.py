"""One typed configuration tree: TOML, dotted overrides, unknown keys refused, cross-field checks.

``load(path, ["train.lr=1e-4"])`` gives a frozen :class:`Config`; ``dump(config)`` gives the TOML text
that a run keeps as ``config.toml``. A key that was renamed gets no alias: a key whose meaning changed
in silence misconfigures a run.
"""

from dart_gui.config.episodes import (
    AgentConfig,
    ApiConfig,
    EnvConfig,
    EvalConfig,
    ModelConfig,
    RunnerConfig,
)
from dart_gui.config.learning import CurationConfig, DataConfig, TrainConfig
from dart_gui.config.operation import AlarmName, AlarmsConfig, LaunchConfig, RunConfig
from dart_gui.config.serving import CompatConfig, RolloutConfig, SessionsConfig, VllmConfig
from dart_gui.config.source import dump, from_dict, load
from dart_gui.config.tree import Config

__all__ = [
    "AgentConfig",
    "AlarmName",
    "AlarmsConfig",
    "ApiConfig",
    "CompatConfig",
    "Config",
    "CurationConfig",
    "DataConfig",
    "EnvConfig",
    "EvalConfig",
    "LaunchConfig",
    "ModelConfig",
    "RolloutConfig",
    "RunConfig",
    "RunnerConfig",
    "SessionsConfig",
    "TrainConfig",
    "VllmConfig",
    "dump",
    "from_dict",
    "load",
]
