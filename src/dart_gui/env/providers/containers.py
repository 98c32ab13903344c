"""What a container with a desktop is made of: the profiles, and what the configuration adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.ports import CHROME, SCREEN, VLC
from dart_gui.env.providers import kvm
from dart_gui.errors import ConfigError, SetupError

DESKTOP_IMAGE = "dart-gui-desktop"
OSWORLD_IMAGE = "happysixd/osworld-docker"
EMULATOR_MB = 512
"""Of a container's memory: what QEMU takes besides the memory of the machine."""
MIN_MACHINE_MB = 2048
HOW_TO_GET = {
    DESKTOP_IMAGE: f"docker build -f deploy/desktop/Dockerfile -t {DESKTOP_IMAGE} .",
    OSWORLD_IMAGE: f"docker pull {OSWORLD_IMAGE}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Sizes in MB."""

    image: str
    guest_port: int
    memory_mb: int
    cpus: float
    max_processes: int
    shm_mb: int
    network: str  # empty for one of our own
    boot_timeout_s: float
    env: tuple[str, ...] = ()  # NAME=value
    volumes: tuple[str, ...] = ()  # /here:/there:ro
    devices: tuple[str, ...] = ()
    disk_mb: int = 0  # of the home, in memory; 0: all can be written, on the daemon's disk
    privileges: tuple[str, ...] = ()  # capabilities that are added
    ports: tuple[int, ...] = ()  # published beside the guest's, whose server has no way to them
    is_confined: bool = True  # no capability of root, and no way to gain one
    warnings: tuple[str, ...] = ()


def container_spec(config: EnvConfig, *, probe: Callable[[], kvm.Kvm] = kvm.probe) -> ContainerSpec:
    """The container of a configuration. ``probe`` is asked where the profile can use KVM.

    Raises:
        ConfigError: a value has another form, or the profile lacks one.
        SetupError: KVM is demanded and does not work.
    """
    _check_forms(config)
    if config.docker_profile == "osworld":
        return _osworld(config, probe)
    size = (f"SCREEN_WIDTH={config.desktop_width}", f"SCREEN_HEIGHT={config.desktop_height}")
    return _spec(config, image=DESKTOP_IMAGE, env=size, disk_mb=config.docker_disk_mb)


def _osworld(config: EnvConfig, probe: Callable[[], kvm.Kvm]) -> ContainerSpec:
    """QEMU over an overlay of the disk; the variables are those of qemus/qemu, its base."""
    disk = Path(config.docker_disk)
    if not config.docker_disk or not disk.is_file():
        raise ConfigError(
            "the profile osworld wants the virtual machine's disk (Ubuntu.qcow2 of OSWorld) as "
            f"env.docker_disk; {config.docker_disk!r} is no file"
        )
    machine_mb = config.desktop_memory_mb - EMULATOR_MB
    if machine_mb < MIN_MACHINE_MB:
        raise ConfigError(
            f"env.desktop_memory_mb = {config.desktop_memory_mb} leaves {machine_mb} MB to OSWorld's "
            f"virtual machine: give at least {MIN_MACHINE_MB + EMULATOR_MB}"
        )
    missing = _why_no_kvm(config, probe)
    env = [f"RAM_SIZE={machine_mb}M", f"CPU_CORES={max(1, round(config.docker_cpus))}"]
    env += ["DISK_SIZE=32G", *(["KVM=N"] if missing else [])]
    warning = (
        f"OSWorld's virtual machine runs WITHOUT KVM ({missing}): every instruction is emulated, a boot "
        "takes many minutes, and an action seconds"
    )
    return _spec(
        config,
        image=OSWORLD_IMAGE,
        env=tuple(env),
        volumes=(f"{disk.absolute()}:/System.qcow2:ro",),
        devices=() if missing else (str(kvm.DEVICE),),
        privileges=("NET_ADMIN",),
        ports=(CHROME, VLC, SCREEN),
        is_confined=False,
        warnings=(warning,) if missing else (),
    )


def _why_no_kvm(config: EnvConfig, probe: Callable[[], kvm.Kvm]) -> str:
    """Empty where the machine is to use it."""
    if config.docker_kvm == "off":
        return "env.docker_kvm is off"
    found = probe()
    if not found.works and config.docker_kvm == "on":
        raise SetupError(
            f"env.docker_kvm is on, and KVM does not work here: {found.text}. Set it to auto to go "
            "without, or use a machine with hardware virtualisation"
        )
    return "" if found.works else found.text


def _spec(
    config: EnvConfig,
    *,
    image: str,
    env: tuple[str, ...],
    disk_mb: int = 0,
    volumes: tuple[str, ...] = (),
    devices: tuple[str, ...] = (),
    privileges: tuple[str, ...] = (),
    ports: tuple[int, ...] = (),
    is_confined: bool = True,
    warnings: tuple[str, ...] = (),
) -> ContainerSpec:
    return ContainerSpec(
        image=config.docker_image or image,
        guest_port=config.docker_guest_port,
        memory_mb=config.desktop_memory_mb,
        cpus=config.docker_cpus,
        max_processes=config.docker_max_processes,
        shm_mb=config.docker_shm_mb,
        network=config.docker_network,
        boot_timeout_s=config.docker_boot_s,
        env=(*env, *config.docker_env),
        volumes=(*volumes, *config.docker_volumes),
        devices=(*devices, *config.docker_devices),
        disk_mb=disk_mb,
        privileges=privileges,
        ports=ports,
        is_confined=is_confined,
        warnings=warnings,
    )


def _check_forms(config: EnvConfig) -> None:
    for item in config.docker_env:
        if not item.partition("=")[1]:
            raise ConfigError(f"env.docker_env: {item!r} is not of the form NAME=value")
    for item in config.docker_volumes:
        here, _, there = item.partition(":")
        if not (here.startswith("/") and there.startswith("/")):
            raise ConfigError(f"env.docker_volumes: {item!r} is not of the form /here:/there:ro")
