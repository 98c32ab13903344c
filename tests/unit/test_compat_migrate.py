"""The published configuration, translated."""

import tomllib
from pathlib import Path

import pytest

from dart_gui.cli import main
from dart_gui.compat.migrate import migrate, read_env, resolve
from dart_gui.config import from_dict
from dart_gui.errors import ConfigError

YAML = Path(__file__).parents[1] / "data" / "published_config.yaml"
pytest.importorskip("yaml")


def translated(tmp_path, env=""):
    path = tmp_path / ".env"
    path.write_text(env)
    return migrate(YAML, path)


def test_each_setting_has_its_place(tmp_path):
    result = translated(tmp_path)
    config = from_dict(tomllib.loads(result.toml()), source="test")
    assert config.model.path == "/models/UI-TARS-1.5-7B"
    rollout = config.rollout
    assert (rollout.engine, rollout.num_workers, rollout.port) == ("vllm", 4, 15959)
    assert (rollout.temperature, rollout.max_tokens, rollout.max_context) == (0.7, 500, 24000)
    assert rollout.request_timeout_s == 100
    assert config.vllm.gpu_memory_utilization == 0.85
    assert config.vllm.args == ["--enforce-eager", "--limit-mm-per-prompt", '{"image": 5}']
    assert (config.runner.num_slots, config.env.num_envs, config.data.group_size) == (20, 20, 8)
    assert (config.runner.max_steps, config.agent.max_images, config.agent.max_texts) == (29, 5, 35)
    assert config.data.ledger == "mysql+pymysql://agent:p%40ss%2Fword@db.example:3307/rollouts"
    assert (config.compat.enabled, config.compat.save_dir) == (True, "results/pass1")


@pytest.mark.parametrize(
    "what",
    ["frequency_penalty", "trust_remote_code", "checkpoint_roots", "model_pool.seed", "chmod 600",
     "0.0.0.0", "storage.root", "temperature 1", "max_steps = 30"],
)  # fmt: skip
def test_nothing_is_left_out_in_silence(tmp_path, what):
    assert any(what in note for note in translated(tmp_path).notes)


def test_the_environment_fills_in(tmp_path):
    env = 'export ROLLOUTER_DATA_DIR="/data/out"\n# DB_HOST=x\nOSWORLD_TOKEN=abc\nRUN_ID = r1\n'
    result = translated(tmp_path, env)
    assert result.tree["compat"]["save_dir"] == "/data/out"
    assert any("OSWORLD_TOKEN" in note for note in result.notes)
    assert not any("abc" in note for note in result.notes)


def test_the_database_of_the_trainer_where_the_runner_names_none(tmp_path):
    yaml = tmp_path / "config.yaml"
    yaml.write_text("model: {ckpt_path: /m}\n")
    env = tmp_path / ".env"
    env.write_text("DB_HOST=h\nDB_USER=u\nDB_PASSWORD=p\nDB_DATABASE=d\n")
    assert migrate(yaml, env).tree["data"]["ledger"] == "mysql+pymysql://u:p@h:3306/d"


def test_lines_of_an_env_file(tmp_path):
    path = tmp_path / ".env"
    path.write_text("A=1\n export B = 'x y' \n#C=3\nnonsense\nD=\n")
    assert read_env(path) == {"A": "1", "B": "x y", "D": ""}


def test_references(monkeypatch):
    tree = {"a": {"b": 3, "c": "${a.b}", "d": "x-${a.b}-${oc.env:NAME,y}", "e": "${oc.env:HERE}"}}
    monkeypatch.delenv("NAME", raising=False)
    assert resolve(tree, {"HERE": "z"})["a"] == {"b": 3, "c": 3, "d": "x-3-y", "e": "z"}
    with pytest.raises(ConfigError, match="lead to one another"):
        resolve({"a": {"b": "${a.c}", "c": "${a.b}"}}, {})


@pytest.mark.parametrize("text", ["- a list", "{", "model: [", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        migrate(path, None)


def test_the_command_prints_a_configuration(tmp_path, capsys):
    assert main(["migrate", str(YAML)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Translated by")
    assert from_dict(tomllib.loads(text), source="test").rollout.engine == "vllm"
    assert main(["migrate", str(tmp_path / "none.yaml")]) == 1
