"""``dart-gui migrate config.yaml .env``: the settings of a published deployment as our configuration.

Nothing is translated in silence: what has no counterpart, or means something else here, is a note.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dart_gui.config import dump, from_dict
from dart_gui.errors import ConfigError, boundary

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")
_ENV_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*")
_MISSING = object()
_MAX_DEPTH = 16


@dataclass(slots=True)
class Migration:
    """The tree of our configuration as it grows, and what a person has to know of it."""

    tree: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any) -> None:
        section, name = key.split(".")
        self.tree.setdefault(section, {})[name] = value

    def toml(self) -> str:
        """Raises:
        ConfigError: a value is out of its bounds here.
        """
        config = from_dict(self.tree, source="the translated configuration")
        given = {f"{section}.{name}" for section, keys in self.tree.items() for name in keys}
        lines = ["# Translated by `dart-gui migrate`.", *(f"# - {note}" for note in self.notes), ""]
        section = ""
        for line in dump(config).splitlines():
            if line.startswith("["):
                section = line.strip("[]")
                if section in self.tree:
                    lines += [line]
            elif f"{section}.{line.split(' = ')[0]}" in given:
                lines += [line]
        return "\n".join(lines) + "\n"


def migrate(yaml_path: Path, env_path: Path | None) -> Migration:
    """Raises:
    ConfigError: a file cannot be read.
    """
    env = read_env(env_path) if env_path else {}
    source = resolve(read_yaml(yaml_path), env)
    result = Migration()
    for part in (_model, _vllm_params, _storage, _coordinator, _runner, _sampling, _database):
        part(source, result)
    _environment(env, result)
    _fit(result)
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    with boundary(ConfigError, f"reading {path}"):
        try:
            import yaml
        except ImportError:
            raise ConfigError(
                "PyYAML is needed to read the published configuration: pip install pyyaml"
            ) from None
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} is not a mapping of sections")
        return tree


def read_env(path: Path) -> dict[str, str]:
    with boundary(ConfigError, f"reading {path}"):
        lines = path.read_text(encoding="utf-8").splitlines()
    found = [match for line in lines if (match := _ENV_LINE.fullmatch(line))]
    return {match[1]: match[2].strip("'\"") for match in found}


def resolve(tree: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """``${section.key}`` and ``${oc.env:NAME,default}``, as OmegaConf has them.

    Raises:
        ConfigError: references lead to one another.
    """

    def follow(reference: str, depth: int) -> Any:
        if reference.startswith("oc.env:"):
            name, _, default = reference[7:].partition(",")
            return env.get(name, os.environ.get(name, default))
        return walk(_get(tree, reference, default=""), depth + 1)

    def walk(value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"the references in {value!r:.80} lead to one another")
        if isinstance(value, dict):
            return {key: walk(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, depth) for item in value]
        if not isinstance(value, str):
            return value
        if whole := _REFERENCE.fullmatch(value):
            return follow(whole[1], depth)
        return _REFERENCE.sub(lambda match: str(follow(match[1], depth)), value)

    return dict(walk(tree, 0))


def _get(tree: Mapping[str, Any], path: str, default: Any = _MISSING) -> Any:
    value: Any = tree
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def _copy(
    source: Mapping[str, Any],
    result: Migration,
    pairs: Mapping[str, str],
    convert: Callable[[Any], Any] = lambda value: value,
) -> None:
    for theirs, ours in pairs.items():
        value = _get(source, theirs)
        if value is not _MISSING and value is not None:
            result.set(ours, convert(value))


# --- the parts ---------------------------------------------------------------------------------


def _model(source: Mapping[str, Any], result: Migration) -> None:
    result.set("rollout.engine", "vllm")
    result.set("compat.enabled", True)
    _copy(source, result, {"model.ckpt_path": "model.path", "model.host": "rollout.host"}, str)
    _copy(
        source,
        result,
        {"model.replicas": "rollout.num_workers", "model.service_port": "rollout.port"},
        int,
    )
    if _get(source, "model.host") == "0.0.0.0":
        result.notes.append(
            "rollout.host = 0.0.0.0 listens on every interface. Each request needs the token "
            "(runs/<run_id>/token): give the published clients http://host:port/t/<token> as "
            "model.service_endpoint."
        )
    if _get(source, "model.base_port") is not _MISSING:
        result.notes.append("model.base_port: the vLLM servers listen on Unix sockets instead.")
    result.notes.append(
        "compat.checkpoint_roots must name the folder under which the trainer writes checkpoints: "
        "/reload takes paths inside it only."
    )
    result.notes.append(
        "model.dtype: float32 is the default here; a 7B model wants bfloat16 (set so below)."
    )
    result.set("model.dtype", "bfloat16")


_OWN_FLAGS = {
    "gpu_memory_utilization": "vllm.gpu_memory_utilization",
    "tensor_parallel_size": "vllm.tensor_parallel_size",
    "max_model_len": "rollout.max_context",
    "max_num_seqs": "rollout.max_batch_size",
}
_DROPPED_FLAGS = {
    "trust_remote_code": "no code from a model folder is run",
    "port": "see model.base_port",
    "host": "see model.base_port",
    "served_model_name": "the service names it",
    "enable_prefix_caching": "it is on",
    "seed": "each request has its own",
}


def _vllm_params(source: Mapping[str, Any], result: Migration) -> None:
    given = _get(source, "model.vllm_params", default={}) or {}
    flags: list[str] = []
    for name, value in given.items():
        key = str(name).lstrip("-").replace("-", "_")
        if key in _OWN_FLAGS:
            result.set(_OWN_FLAGS[key], value)
        elif key in _DROPPED_FLAGS:
            result.notes.append(f"model.vllm_params.{key} is left out: {_DROPPED_FLAGS[key]}.")
        else:
            flags.append(f"--{key.replace('_', '-')}")
            if value not in ("store_true", True, None):
                flags.append(value if isinstance(value, str) else json.dumps(value))
    if flags:
        result.set("vllm.args", flags)
        result.notes.append("vllm.args: check the flags against the vLLM that you run now.")


def _storage(source: Mapping[str, Any], result: Migration) -> None:
    root = _get(source, "storage.root")
    if root is _MISSING:
        return
    result.notes.append(
        f"storage.root = {root} was the run_id too: here it is the run's name, --name "
        f"{re.sub(r'[^A-Za-z0-9._-]+', '-', str(root)).strip('-')}."
    )
    if _get(source, "model.save_local", default=True):
        result.set("compat.save_dir", str(root))


def _coordinator(source: Mapping[str, Any], result: Migration) -> None:
    slots = _get(source, "coordinator.max_concurrent_envs")
    if slots is not _MISSING:
        result.set("env.num_envs", int(slots))
        result.set("runner.num_slots", int(slots))
    members = _get(source, "coordinator.rollout_n", default=_get(source, "runner.rollout_n"))
    if members is not _MISSING:
        result.set("data.group_size", int(members))
    if _get(source, "coordinator.dynamic_rollout", default=False):
        result.notes.append("coordinator.dynamic_rollout: see the keys of [curation].")
    for name in ("max_task_queue_size", "env_cleanup_interval", "env_cleanup_timeout"):
        if _get(source, f"coordinator.{name}") is not _MISSING:
            result.notes.append(f"coordinator.{name} has no counterpart: nothing queues up here.")
    if _get(source, "task.task_file") is not _MISSING:
        result.notes.append(
            "task.task_file, task.osworld_root: name the tasks in env.tasks (docs/configuration.md)."
        )


def _runner(source: Mapping[str, Any], result: Migration) -> None:
    _copy(
        source,
        result,
        {"runner.max_images": "agent.max_images", "runner.max_texts": "agent.max_texts"},
        int,
    )
    steps = _get(source, "runner.max_steps")
    if steps is not _MISSING:
        result.set("runner.max_steps", max(1, int(steps) - 1))
        result.notes.append(
            f"runner.max_steps = {steps} was {int(steps) - 1} model calls and a forced failure: "
            f"here it counts model calls."
        )
    _copy(source, result, {"runner.env.max_retries": "runner.max_attempts"}, int)


def _sampling(source: Mapping[str, Any], result: Migration) -> None:
    pool = "runner.model_pool"
    _copy(source, result, {f"{pool}.max_tokens": "rollout.max_tokens"}, int)
    _copy(
        source,
        result,
        {
            f"{pool}.temperature": "rollout.temperature",
            f"{pool}.timeout": "rollout.request_timeout_s",
        },
        float,
    )
    for name, neutral in (("top_p", 1), ("frequency_penalty", 0)):
        value = _get(source, f"{pool}.{name}", default=neutral)
        if value != neutral:
            result.notes.append(
                f"{pool}.{name} = {value} is left out: no trainer models it, so the recorded "
                "log-probabilities would not be those of what was sampled."
            )
    if _get(source, f"{pool}.seed") is not _MISSING:
        result.notes.append(
            f"{pool}.seed was the same for all attempts at a task: here each has its own (run.seed)."
        )
    if _get(source, f"{pool}.temperature", default=1.0) != 1.0:
        result.notes.append(
            "rollout.temperature: log-probabilities are those of the sampled distribution here, and "
            "were those at temperature 1 there. With the published trainer, which computes at "
            "temperature 1, set 1.0."
        )


def _database(source: Mapping[str, Any], result: Migration) -> None:
    mysql = _get(source, "mysql", default=None)
    if mysql:
        _set_ledger(
            result,
            user=mysql.get("username", ""),
            password=mysql.get("password", ""),
            host=mysql.get("host", "localhost"),
            port=mysql.get("port", 3306),
            database=mysql.get("database", ""),
        )


def _set_ledger(result: Migration, **parts: Any) -> None:
    user, password = (quote(str(parts[name]), safe="") for name in ("user", "password"))
    place = f"{parts['host']}:{parts['port']}/{parts['database']}"
    result.set("data.ledger", f"mysql+pymysql://{user}:{password}@{place}")
    note = "data.ledger holds the database's password: keep this file to yourself (chmod 600)."
    if note not in result.notes:
        result.notes.append(note)


def _environment(env: Mapping[str, str], result: Migration) -> None:
    if ("data" not in result.tree or "ledger" not in result.tree["data"]) and "DB_HOST" in env:
        _set_ledger(
            result,
            user=env.get("DB_USER", ""),
            password=env.get("DB_PASSWORD", ""),
            host=env["DB_HOST"],
            port=env.get("DB_PORT", 3306),
            database=env.get("DB_DATABASE", ""),
        )
    if folder := env.get("ROLLOUTER_DATA_DIR"):
        result.set("compat.save_dir", folder)
    for name in ("OSWORLD_BASE_URL", "OSWORLD_TOKEN"):
        if name in env:
            result.notes.append(f"{name}: see docs/migrating.md, environment server.")
    for name in ("RUN_ID", "EXPERIMENT_NAME", "SWANLAB_API_KEY", "REWARD_SERVER_URL"):
        if name in env:
            result.notes.append(f"{name} has no key here: see docs/migrating.md.")


def _fit(result: Migration) -> None:
    """What the published stack leaves to vLLM and to verl has keys of its own here."""
    rollout = result.tree["rollout"]
    rollout.setdefault("max_context", 32768)
    train = result.tree.setdefault("train", {})
    train.setdefault("max_tokens_per_microbatch", rollout["max_context"])
    result.notes.append(
        f"rollout.max_context = {rollout['max_context']} bounds prompt and reply together."
    )
