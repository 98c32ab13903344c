"""Agents by name: ours, an installed package's, or one of your own."""

from __future__ import annotations

from pathlib import Path

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import ImageLimits
from dart_gui.config import AgentConfig
from dart_gui.errors import ConfigError
from dart_gui.registry import Registry

AGENTS = Registry(
    what="agent",
    key="agent.name",
    group="dart_gui.agents",
    builtin={
        "ui-tars": "dart_gui.agent.agent:Agent",
        "qwen3-computer-use": "dart_gui.agent.computer_use:Qwen3Agent",
        "qwen2.5-computer-use": "dart_gui.agent.computer_use:Qwen25Agent",
    },
)


def agent_class(reference: str) -> type[Agent]:
    """Raises ``ConfigError``: there is none, it cannot be imported, or it is no class of agents."""
    found = AGENTS.load(reference)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ConfigError(
            f"agent.name = {reference!r} is {found!r}, expected a subclass of "
            "dart_gui.agent.agent.Agent"
        )
    return found


def make_agent(model: Path | ImageLimits, config: AgentConfig) -> Agent:
    """The configured agent for the model in a folder, or for one of which only its limits are known.

    Raises:
        SetupError: ``model`` is a path and not a model folder.
        ConfigError: there is no such agent, or a file of the folder makes no sense.
    """
    return agent_class(config.name)(model, config)
