"""The options of ``dart-gui eval`` as a configuration, and what is played by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_gui.cli import split_overrides
from dart_gui.config import Config
from dart_gui.env.suites import eval_seed
from dart_gui.errors import ConfigError
from dart_gui.launch.api_eval import ApiJob, plan
from dart_gui.launch.eval_options import api_config, refuse_api_options
from dart_gui.launch.parser import build_parser

API = ("--agent", "openai", "--base-url", "http://h/v1", "--model", "4.1")


def parse(*arguments: str):  # type: ignore[no-untyped-def]
    parser = build_parser()
    rest, overrides = split_overrides(["eval", *arguments], parser)
    args = parser.parse_args(rest)
    args.overrides = overrides
    return args


def config(*arguments: str) -> Config:
    return api_config(parse(*API, *arguments))


def test_defaults_are_for_a_large_model() -> None:
    made = config()
    assert (made.api.base_url, made.api.model) == ("http://h/v1", "4.1")
    assert made.agent.name == "ui-tars"
    assert (made.runner.max_steps, made.runner.num_slots, made.api.max_tokens) == (15, 4, 1024)


def test_short_options_and_keys() -> None:
    made = config(
        *("--grammar", "computer_use", "--parallel", "2", "--max-steps", "50"),
        *("--max-tokens", "300", "--key-env", "K", "--agent.max_images", "3"),
    )
    assert made.agent.name == "qwen3-computer-use"
    assert (made.env.num_envs, made.runner.num_slots, made.runner.max_steps) == (2, 2, 50)
    assert (made.api.max_tokens, made.api.key_env, made.agent.max_images) == (300, "K", 3)
    assert config("--grammar", "own.py:Agent").agent.name.endswith("own.py:Agent")


def test_tasks_by_short_name_or_all() -> None:
    made = config(
        "--suite", "miniwob", "--tasks", "click-test,miniwob/enter-text", "--tasks", "login-user"
    )
    assert made.env.tasks == ["miniwob/click-test", "miniwob/enter-text", "miniwob/login-user"]
    assert len(config("--tasks", "all").env.tasks) > 100
    with pytest.raises(ConfigError, match="did you mean miniwob/click-test"):
        config("--tasks", "click-tset")


def test_a_configuration_keeps_its_own_limits_but_not_the_tasks_of_another_suite(
    tmp_path: Path,
) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[env]\ntasks = ["miniwob/click-test"]\n[runner]\nmax_steps = 7\n')
    made = config(str(path))
    assert (made.runner.max_steps, made.env.tasks) == (7, ["miniwob/click-test"])
    assert config(str(path), "--suite", "desktop-mini").env.tasks == []


@pytest.mark.parametrize("option", [("--repeats", "2"), ("--grammar", "uitars"), ("--out", "x")])
def test_options_of_the_other_kind(option: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{option[0]} needs --agent openai"):
        refuse_api_options(parse(*option))
    refuse_api_options(parse("--suite", "miniwob", "--parallel", "2"))


def test_the_plan_is_balanced_and_its_start_does_not_change_with_its_length() -> None:
    def names(num_episodes: int | None, num_repeats: int) -> list[tuple[str, int, int]]:
        job = ApiJob(temperature=1.0, num_episodes=num_episodes, num_repeats=num_repeats, out=None)
        return [
            (trial.task.task_id, trial.task.seed - eval_seed(0), trial.repeat)
            for trial in plan(["s/a", "s/b"], job)
        ]

    assert names(None, 1) == [("s/a", 0, 0), ("s/b", 0, 0)]
    assert names(3, 1) == [("s/a", 0, 0), ("s/b", 0, 0), ("s/a", 1, 0), ("s/b", 1, 0)]
    assert names(None, 2) == [*names(None, 1), ("s/a", 0, 1), ("s/b", 0, 1)]
