"""What a container is made of, what is asked of KVM, and what the set-up of tests undoes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.providers.containers import container_spec
from dart_gui.env.providers.docker import (
    DESKTOP,
    OWNER,
    connect,
    container_options,
    docker_provider,
)
from dart_gui.env.providers.kvm import Kvm, probe
from dart_gui.errors import ConfigError, SetupError
from dart_gui.launch.env_server import ServerOptions, make_provider


def works() -> Kvm:
    return Kvm(True, "a guest ran at full speed")


def hangs() -> Kvm:
    return Kvm(False, "a guest hung")


def never() -> Kvm:
    raise AssertionError("nothing here can use KVM")


def osworld(tmp_path: Path, **changes: Any) -> EnvConfig:
    disk = tmp_path / "Ubuntu.qcow2"
    disk.touch()
    values = {"docker_profile": "osworld", "docker_disk": str(disk), "desktop_memory_mb": 4608}
    return EnvConfig.model_validate(values | changes)


def test_the_desktop_is_confined_and_limited() -> None:
    config = EnvConfig(
        desktop_width=640, desktop_height=480, docker_env=["A=b=c", "SCREEN_WIDTH=9"]
    )
    options = container_options(container_spec(config, probe=never), "net")
    assert options["environment"] == {"SCREEN_WIDTH": "9", "SCREEN_HEIGHT": "480", "A": "b=c"}
    assert options["ports"] == {"5000/tcp": ("127.0.0.1", None)}
    assert (options["cap_drop"], options["cap_add"]) == (["ALL"], [])
    assert (options["mem_limit"], options["memswap_limit"]) == ("2048m", "2048m")
    assert (options["nano_cpus"], options["pids_limit"]) == (2_000_000_000, 1024)


def test_what_is_written_has_a_size(tmp_path: Path) -> None:
    def options(config: EnvConfig) -> dict[str, Any]:
        return container_options(container_spec(config, probe=works), "net")

    limited = options(EnvConfig(docker_disk_mb=101))
    assert limited["read_only"]
    sizes = {path: text.rpartition("=")[2] for path, text in limited["tmpfs"].items()}
    assert sizes == {"/home": "101m", "/tmp": "51m", "/var/tmp": "16m", "/run": "16m"}
    for config in (EnvConfig(docker_disk_mb=0), osworld(tmp_path)):
        assert not {"read_only", "tmpfs"} & set(options(config))
        provider = docker_provider(config, tmp_path)
        assert "no limit on what a desktop writes to the daemon's disk" in provider.warnings()


def test_osworld_has_kvm_where_it_works(tmp_path: Path) -> None:
    spec = container_spec(osworld(tmp_path), probe=works)
    assert spec.image == "happysixd/osworld-docker"
    assert spec.volumes == (f"{tmp_path}/Ubuntu.qcow2:/System.qcow2:ro",)
    assert spec.env == ("RAM_SIZE=4096M", "CPU_CORES=2", "DISK_SIZE=32G")
    assert (spec.devices, spec.privileges, spec.warnings) == (("/dev/kvm",), ("NET_ADMIN",), ())
    # Its guest server has no way to them, as ours has.
    published = container_options(spec, "net")["ports"]
    assert published == {f"{port}/tcp": ("127.0.0.1", None) for port in (5000, 9222, 8080, 8006)}


def test_osworld_without_kvm_says_so(tmp_path: Path) -> None:
    spec = container_spec(osworld(tmp_path), probe=hangs)
    assert spec.devices == ()
    assert "KVM=N" in spec.env
    (warning,) = spec.warnings
    assert "WITHOUT KVM (a guest hung)" in warning
    with pytest.raises(SetupError, match="a guest hung"):
        container_spec(osworld(tmp_path, docker_kvm="on"), probe=hangs)
    off = container_spec(osworld(tmp_path, docker_kvm="off"), probe=never)
    assert "env.docker_kvm is off" in off.warnings[0]


def test_values_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env\.docker_disk; '' is no file"):
        container_spec(EnvConfig(docker_profile="osworld"), probe=never)
    with pytest.raises(ConfigError, match="leaves 1536 MB"):
        container_spec(osworld(tmp_path, desktop_memory_mb=2048), probe=never)
    with pytest.raises(ConfigError, match="NAME=value"):
        container_spec(EnvConfig(docker_env=["A"]), probe=never)
    with pytest.raises(ConfigError, match="/here:/there"):
        container_spec(EnvConfig(docker_volumes=["data:/data"]), probe=never)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('print(\'{"works": true, "text": "fine"}\')', "fine"),
        ("import time; time.sleep(600)", "did not end in"),
        ("raise OSError('refused')", "the probe ended with 1: OSError: refused"),
        ("print('[]')", "the probe ended with 0: nothing"),
    ],
)
def test_kvm_is_probed_within_bounds(tmp_path: Path, code: str, text: str) -> None:
    (tmp_path / "kvm").touch()
    limit_s = 0.5 if "sleep" in code else 60.0
    found = probe(
        device=tmp_path / "kvm", limit_s=limit_s, command=(sys.executable, "-S", "-c", code)
    )
    assert found.works == (text == "fine")
    assert text in found.text


def test_kvm_that_is_not_there_is_not_probed(tmp_path: Path) -> None:
    found = probe(device=tmp_path / "kvm", command=("/none",))
    assert found == Kvm(False, f"{tmp_path}/kvm is not there")


def test_a_daemon_that_is_absent_or_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(SetupError, match="no Docker or Podman answers at unix:///"):
        connect(f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")
    with pytest.raises(SetupError, match=r"env-server --provider docker.* there"):
        connect()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"pip install 'dart-gui\[docker\]'"):
        connect()


class Answers:
    """What a daemon says of its containers, one answer after another: which run, by desktop."""

    def __init__(self, owner: str, *answers: dict[str, bool]) -> None:
        self._owner = owner
        self._answers = list(answers)

    def list(self, **_: Any) -> list[SimpleNamespace]:
        return [self._container(*item) for item in self._answers.pop(0).items()]

    def _container(self, desktop_id: str, is_running: bool) -> SimpleNamespace:
        ports = {"5000/tcp": [{"HostPort": "7"}]} if is_running else {}
        return SimpleNamespace(
            labels={OWNER: self._owner, DESKTOP: desktop_id},
            attrs={
                "State": {"Running": is_running},
                "Created": "2026-01-01T00:00:00Z",
                "NetworkSettings": {"Ports": ports},
            },
        )


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([{"b": True, "a": True}], {"a": True, "b": True}),
        ([{"dead": False, "a": True}] * 2, {"a": True, "dead": False}),
        # It was booting when the daemon looked, and was ready before the answer was there.
        ([{"late": False, "a": True}, {"late": True, "a": True}], {"a": True, "late": True}),
        ([{"dead": False}, {"dead": False, "later": False}], {"dead": False}),
        ([{"dead": False, "boots": True, "soon": False}] * 2, {"dead": False}),
        ([{"boots": True, "soon": False}], {}),
        ([{"dead": False}, {}], {}),
    ],
)
async def test_an_old_answer_of_the_daemon_takes_no_desktop_for_dead(
    tmp_path: Path, answers: list[dict[str, bool]], found: dict[str, bool]
) -> None:
    provider = docker_provider(EnvConfig(), tmp_path)
    containers = Answers(provider._owner, *answers)
    provider._docker = SimpleNamespace(containers=containers)
    provider._booting = {"boots", "soon"}
    assert {one.desktop_id: one.is_running for one in await provider.find()} == found
    assert containers._answers == []


def test_the_env_server_takes_its_settings(tmp_path: Path) -> None:
    def options(provider: str, *overrides: str) -> ServerOptions:
        return ServerOptions(folder=tmp_path, provider=provider, overrides=overrides)

    assert make_provider(options("docker", "env.docker_image=mine")).name == "docker"
    with pytest.raises(ConfigError, match=r"env\.docker_\.\.\. only, got env\.num_envs=3"):
        make_provider(options("docker", "env.num_envs=3"))
    with pytest.raises(ConfigError, match="is for --provider docker"):
        make_provider(options("xvfb", "env.docker_image=mine"))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts")
    return importlib.import_module("setup_docker")


def test_the_packet_filter_is_put_back(script: ModuleType) -> None:
    undo_rules = sys.modules["container_engine"].undo_rules
    before = ["*filter", ":FORWARD ACCEPT", ":MINE -", "-A MINE -j RETURN"]
    now = [
        *("*filter", ":FORWARD DROP", ":MINE -", ":DOCKER -", "-A MINE -j RETURN"),
        *('-A FORWARD -m comment --comment "of docker" -j DOCKER', "*nat", ":POSTROUTING ACCEPT"),
        "-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
    ]
    commands = [" ".join(command[3:]) for command in undo_rules(before, now)]
    assert commands == [
        "filter -P FORWARD ACCEPT",
        "filter -D FORWARD -m comment --comment of docker -j DOCKER",
        "nat -P POSTROUTING ACCEPT",
        "nat -D POSTROUTING -s 172.17.0.0/16 -j MASQUERADE",
        "filter -F DOCKER",
        "filter -X DOCKER",
    ]
    assert undo_rules(before, before) == []


def test_where_there_are_no_containers_it_says_why_and_the_tests_are_left_to_skip(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def no_daemon(state: Path) -> Iterator[str]:
        raise script.Unavailable("only root may start one")
        yield ""

    monkeypatch.delenv("DART_DOCKER_HOST", raising=False)
    monkeypatch.setattr(script, "STATE", tmp_path)
    monkeypatch.setitem(script.ENGINES, "docker", no_daemon)
    show = [sys.executable, "-c", "import os; print(os.environ.get('DART_DOCKER_HOST'))"]
    assert script.main(show) == 0
    assert script.main([sys.executable, "-c", "raise SystemExit(5)"]) == 5
    said = capfd.readouterr()
    assert said.out == "None\n"
    assert "no desktops in containers here: only root may start one" in said.err


def test_podman_that_is_not_whole_says_what_is_missing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sys.modules["container_engine"]
    monkeypatch.setattr(engine, "NETAVARK", (tmp_path / "netavark",))
    monkeypatch.setattr(engine.shutil, "which", lambda name: None if name == "podman" else name)
    with (
        pytest.raises(script.Unavailable, match="apt-get install netavark podman"),
        script.ENGINES["podman"](tmp_path),
    ):
        raise AssertionError("it started")


# Wants the lock, says that it has it, and holds it until it is told to end.
TURN = """
import sys
sys.path.insert(0, sys.argv[1])
import container_engine as engine
from pathlib import Path
engine.TURN_S = float(sys.argv[3])
with engine.alone(Path(sys.argv[2])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_second_engine_waits_for_its_turn_and_says_whose_it_is(tmp_path: Path) -> None:
    scripts = Path(__file__).resolve().parents[2] / "scripts"

    def want(turn_s: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", TURN, scripts, tmp_path / "lock", str(turn_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    with want(60) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "mine\n"
        with want(60) as second, want(0) as third:
            assert second.stderr is not None
            said = second.stderr.readline()
            assert "waiting for the engine of another process" in said
            assert f"process {first.pid} since 20" in said
            assert f"held by process {first.pid} since" in third.communicate()[1]  # no more time
            assert third.returncode == 1
            assert second.poll() is None
            first.kill()  # a lock does not outlive its process
            assert second.communicate() == ("mine\n", "")
    assert f"process {second.pid} since" in (tmp_path / "lock").read_text()
