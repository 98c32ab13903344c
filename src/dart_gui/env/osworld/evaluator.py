"""OSWorld's getters and metrics on one task; runs by itself in the environment that has ``desktop-env``.

One JSON object comes on standard input, one goes to standard output: ``{"score": ...}``, or ``{"error":
...}``. Nothing of this project is imported here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
ANSWER_S = 60.0


def main() -> int:
    # Metrics and getters print, and so may what they import of the agent's files.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    _limit(request["limits"])
    try:
        result: dict[str, Any] = {"score": evaluate(request["evaluator"], Environment(request))}
    except Exception as error:  # whatever OSWorld's code raises: the caller makes it our error
        result = {"error": f"{type(error).__name__}: {error}"}
    answer.write(json.dumps(result))
    answer.close()
    os._exit(0)  # threads and child processes of metrics must not keep us


def _limit(limits: Mapping[str, int]) -> None:
    for name, value in {**limits, "CORE": 0}.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (bound, bound))


class Environment:
    """What OSWorld's getters look at: its ``DesktopEnv``, as far as they use it."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.vm_ip: str = request["host"]
        self.server_port = str(request["port"])  # several getters add it to a text
        self.chromium_port: str = request["chromium_port"]
        self.vlc_port: str = request["vlc_port"]
        self.cache_dir: str = request["cache_dir"]
        self.current_use_proxy = False
        self.controller = _controller(self.vm_ip, self.server_port)

    @property
    def vm_platform(self) -> str:
        return str(self.controller.get_vm_platform())

    @property
    def vm_screen_size(self) -> Any:
        return self.controller.get_vm_screen_size()


def _controller(host: str, port: str) -> Any:
    """OSWorld's own, without its waits: it asks three times, five seconds apart, for a file that is
    not there. ``num_absent`` counts what the desktop did not have."""
    import requests
    from desktop_env.controllers.python import PythonController

    class Controller(PythonController):  # type: ignore[misc]
        num_absent = 0

        def get_file(self, file_path: str) -> bytes | None:
            return self._counted(super().get_file(file_path))

        def get_vm_wallpaper(self) -> bytes | None:
            return self._counted(super().get_vm_wallpaper())

        def get_vm_directory_tree(self, path: str) -> dict[str, Any] | None:
            return self._counted(super().get_vm_directory_tree(path))

        def _counted(self, found: T) -> T:
            self.num_absent += found is None
            return found

        def act(self, action: Mapping[str, Any]) -> None:
            answer = requests.post(f"{self.http_server}/action", json=action, timeout=ANSWER_S)
            if answer.status_code != 200 or answer.json().get("action_error"):
                raise RuntimeError(f"{dict(action)} was refused in the desktop: {answer.text}")

        def execute_python_command(self, command: str) -> dict[str, Any]:
            """Without pyautogui, which not every desktop has: see ``_press``."""
            body: dict[str, Any] = {"command": ["python3", "-c", command], "shell": False}
            done = requests.post(f"{self.http_server}/execute", json=body, timeout=ANSWER_S)
            done.raise_for_status()
            result: dict[str, Any] = done.json()
            if result.get("returncode") != 0:
                raise RuntimeError(f"{command!r} failed in the desktop: {result.get('error')}")
            return result

    controller = Controller(host, port)
    controller.retry_times = 1
    controller.retry_interval = 0
    return controller


def load() -> tuple[types.ModuleType, types.ModuleType]:
    """OSWorld's (metrics, getters), with what they import and no metric here needs stood in for."""
    sys.modules.setdefault("easyocr", _absent("easyocr"))
    metrics = importlib.import_module("desktop_env.evaluators.metrics")
    getters = importlib.import_module("desktop_env.evaluators.getters")
    importlib.import_module("desktop_env.evaluators.getters.vscode").get_replay = _press  # type: ignore[attr-defined]
    return metrics, getters


def _press(env: Environment, trajectory: Sequence[Mapping[str, Any]]) -> None:
    """What OSWorld's getter of VS Code has pyautogui do, as typed actions."""
    for part in trajectory:
        given = part["param"]
        action = {
            "hotkey": {"kind": "hotkey", "keys": given},
            "typewrite": {"kind": "type", "text": given},
            "press": {"kind": "press", "key": given},
        }[part["type"]]
        env.controller.act(action)


def _absent(name: str) -> types.ModuleType:
    module = types.ModuleType(name)

    def missing(attribute: str) -> NoReturn:
        raise AttributeError(f"{name} is not installed here, so there is no {name}.{attribute}")

    module.__getattr__ = missing  # type: ignore[method-assign]
    return module


def evaluate(published: Mapping[str, Any], env: Environment) -> float:
    """OSWorld's reward: with "and" the mean, but 0 where one is 0; with "or" the best.

    A result that is not there is worth 0: the agent did not make it. So is a getter or metric that
    fails where the desktop did not have what was asked of it, and a similarity below 0. All else that
    raises is an error.
    """
    every = published.get("conj", "and") == "and"
    scores = []
    for check in checks(published):
        score = _score(check, env)
        if every and score == 0.0:
            return 0.0
        if not every and score == 1.0:
            return 1.0
        scores.append(score)
    return sum(scores) / len(scores) if every else max(scores)


def checks(published: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """OSWorld writes a single check without lists, several as lists of equal length."""
    func = published["func"]
    many = isinstance(func, list)
    count = len(func) if many else 1

    def each(key: str) -> list[Any]:
        entry = published.get(key) or None
        return entry if many and isinstance(entry, list) else [entry] * count

    for name, result, expected, options in zip(
        each("func"), each("result"), each("expected"), each("options"), strict=True
    ):
        yield {"func": name, "result": result, "expected": expected, "options": options or {}}


def _score(check: Mapping[str, Any], env: Environment) -> float:
    metrics, getters = load()
    result, expected = check["result"], check["expected"]
    getter, metric = getattr(getters, f"get_{result['type']}"), getattr(metrics, check["func"])
    num_absent = env.controller.num_absent
    try:
        arguments = [getter(env, result)]
    except Exception as error:
        # Getters go on with the None of a file that is not there.
        if isinstance(error, FileNotFoundError) or env.controller.num_absent > num_absent:
            return 0.0
        raise
    is_absent = _lacks(arguments[0]) or env.controller.num_absent > num_absent
    if expected:
        arguments.append(getattr(getters, f"get_{expected['type']}")(env, expected))
    if is_absent:
        # Most metrics answer 0 to that; some fail on it.
        with contextlib.suppress(Exception):
            return _bounded(metric(*arguments, **check["options"]))
        return 0.0
    return _bounded(metric(*arguments, **check["options"]))


def _lacks(result: Any) -> bool:
    return result is None or (isinstance(result, list) and None in result)


def _bounded(score: Any) -> float:
    """A similarity of pictures is below 0 where one looks like the other's negative."""
    found = float(score)
    return 0.0 if found < 0.0 else found  # NaN stays what it is


if __name__ == "__main__":
    sys.path.remove(
        str(Path(__file__).parent)
    )  # its `tasks` and `setup` are not what OSWorld means
    sys.exit(main())
