"""An episode by the published client, unchanged: run in its folder by a Python that has what it needs.

python published_client.py URL      prints what it saw as one JSON object, last
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType

FILE = "/home/user/b.txt"
TASK = {
    "id": "published-client",
    "snapshot": "none",
    "instruction": "Copy a.txt to b.txt",
    "source": "",
    "trajectory": "",
    "related_apps": ["os"],
    "config": [
        {
            "type": "execute",
            "parameters": {"command": ["bash", "-c", "echo 'héllo <&>' > ~/a.txt"]},
        },
        {"type": "launch", "parameters": {"command": ["xterm"]}},
        {"type": "sleep", "parameters": {"seconds": 2}},
    ],
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_command_line", "command": ["cat", FILE]},
        "expected": {"type": "rule", "rules": {"expected": "héllo <&>\n"}},
    },
    "proxy": False,
}
ACTIONS = ("pyautogui.write('cp a.txt b.txt'); pyautogui.press('enter')", "WAIT")


def main(url: str) -> None:
    os.environ.update(OSWORLD_TOKEN="dart-dart-dart-dart", OSWORLD_BASE_URL=url)
    sys.modules["easyocr"] = ModuleType(
        "easyocr"
    )  # imported by metrics that are not asked for here
    sys.path.insert(0, os.getcwd())
    from desktop_env.desktop_env import DesktopEnv  # type: ignore[import-not-found]

    env = DesktopEnv(provider_name="docker_server", action_space="pyautogui", os_type="Ubuntu")
    seen: dict[str, object] = {"ports": [env.server_port, env.chromium_port, env.vlc_port]}
    env.reset(task_config=TASK)
    seen["platform"], seen["size"] = env.vm_platform, env.vm_screen_size
    seen["before"] = env.evaluate()
    for action in ACTIONS:
        observation, *_ = env.step(action, pause=1)
    seen["screenshot"] = len(observation["screenshot"])
    seen["after"] = env.evaluate()
    first = env.provider.emulator_id
    env.reset(task_config=TASK)
    seen["is_another"] = env.provider.emulator_id != first
    seen["again"] = env.evaluate()
    env.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
