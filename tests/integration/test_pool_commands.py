"""``dart-gui pool`` and ``sft``: scripted solutions from real pages, successes of a run, a warm start."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from dart_gui import config as config_module
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.pool import ExperiencePool
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import ConfigError
from dart_gui.launch import pooling, preflight, run_folder
from dart_gui.model.policy_model import PolicyModel
from dart_gui.runner.main import run_conditions
from dart_gui.types import TypeText

ROOT = Path(__file__).resolve().parents[2]
TINY_AGENT = ROOT / "models" / "tiny-agent"


def load(*overrides):
    tasks = 'env.tasks=["miniwob/click-test", "miniwob/enter-text"]'
    paths = (f"model.path={TINY_AGENT}", "env.num_envs=2", "runner.num_slots=2")
    return config_module.load(ROOT / "configs" / "miniwob-tiny.toml", [tasks, *paths, *overrides])


@pytest.fixture
def console():
    return Console(record=True, width=120, file=open("/dev/null", "w"))


@pytest.mark.browser
def test_scripted_successes_become_entries_that_a_model_can_imitate(console, tmp_path):
    pool, config = str(tmp_path / "pool"), load("train.lr=1e-3", "train.warmup_steps=0")
    assert pooling.add_scripted(console, pool, config, num_per_task=1) == 0
    found = {entry.task_id: entry for entry in ExperiencePool(folder=Path(pool)).entries()}
    assert set(found) == {"miniwob/click-test", "miniwob/enter-text"}
    assert found["miniwob/click-test"].num_steps == 1
    # Focus the field, type, submit; the page scored it 1.
    entry = found["miniwob/enter-text"]
    assert (entry.num_steps, entry.reward) == (3, 1.0)
    assert entry.provenance.conditions == run_conditions(config)
    trajectory = ExperiencePool(folder=Path(pool)).load(entry.entry_id, entry.blob_sha256)
    assert isinstance(trajectory.steps[1].actions[0], TypeText)

    pooling.list_pool(console, pool, config)
    assert re.search(r"miniwob/enter-text\s+script\s+1\s+3-3\s+0", console.export_text())
    pooling.list_pool(console, pool, load("agent.max_images=2"))
    assert "1 (renderer)" in console.export_text()

    out = str(tmp_path / "warm")
    assert pooling.sft(console, pool, out, config, steps=3, batch=2) == 0
    first, last = re.findall(r"step [13]: ([\d.]+) nats per token", console.export_text())
    assert float(last) < float(first)
    PolicyModel(Path(out), device="cpu")  # a model folder of its own
    with pytest.raises(ConfigError, match="exists already"):
        pooling.sft(console, pool, out, config, steps=1, batch=1)


def run_with_successes(folder: Path, config, *, env_version=None) -> None:
    """A run that stored one success and one failure."""
    made = run_folder.create(config, folder, latest=False)
    conditions = run_conditions(config)
    if env_version is not None:
        conditions = type(conditions)(
            env_version=env_version, verifier_version="", renderer=conditions.renderer
        )
    with DataManager.open(
        made.path,
        config,
        sampler=RoundRobinSampler(["miniwob/click-test"], seed=0, train_seed=lambda rng: 1),
        conditions=conditions,
    ) as data:
        data.publish_version(0, "/w/0")
        for reward in (1.0, 0.0):
            planned = data.next_episode(0)
            data.store(*fake_trajectory(planned, run_id=made.run_id, reward=reward))


def test_the_successes_of_a_run_are_added_once(console, tmp_path):
    config = load(f"run.dir={tmp_path}")
    run_with_successes(tmp_path / "earlier", config)
    pool = str(tmp_path / "pool")
    pooling.add_run(console, pool, config, "earlier")
    pooling.add_run(console, pool, config, "earlier")
    text = console.export_text()
    assert "1 added" in text
    assert "1 in the pool already" in text
    (entry,) = ExperiencePool(folder=Path(pool)).entries()
    assert entry.provenance.source == "run"
    assert entry.provenance.policy_version == 0
    trajectory = ExperiencePool(folder=Path(pool)).load(entry.entry_id, entry.blob_sha256)
    assert all(step.completion.foreign for step in trajectory.steps)
    assert trajectory.steps[0].completion.prompt_ids  # as recorded: it renders alike


def test_successes_of_another_environment_are_left_out(console, tmp_path):
    config = load(f"run.dir={tmp_path}")
    run_with_successes(tmp_path / "old", config, env_version="miniwob-0.9")
    pooling.add_run(console, str(tmp_path / "pool"), config, "old")
    assert "1 of another or unknown environment version" in console.export_text()


def test_nothing_that_counts_to_imitate_is_refused(console, tmp_path):
    config = load(f"run.dir={tmp_path}")
    run_with_successes(tmp_path / "earlier", config)
    pooling.add_run(console, str(tmp_path / "pool"), config, "earlier")
    other = load("agent.max_images=2")
    with pytest.raises(ConfigError, match="pool list"):
        pooling.sft(console, str(tmp_path / "pool"), str(tmp_path / "m"), other, steps=1, batch=1)


def test_a_pool_without_any_entry_that_counts_is_found_before_the_start(console, tmp_path):
    config = load(f"run.dir={tmp_path}")
    run_with_successes(tmp_path / "earlier", config)
    pool = f"curation.pool={tmp_path / 'pool'}"
    pooling.add_run(console, str(tmp_path / "pool"), config, "earlier")
    preflight.check_pool(load(pool))
    with pytest.raises(ConfigError, match=r"none of its 1 entries counts .*\(renderer\)"):
        preflight.check_pool(load(pool, "agent.max_images=2"))
    with pytest.raises(ConfigError, match="is not an experience pool"):
        preflight.check_pool(load(f"curation.pool={tmp_path / 'nowhere'}"))
