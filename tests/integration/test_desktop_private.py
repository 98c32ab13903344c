"""Desktops of one process: its folder, and what a process that was killed left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.suite import SUITE, read_server_token
from dart_gui.env.providers.limits import ControlGroups, Limits
from dart_gui.env.providers.private import PrivateXvfbProvider
from dart_gui.errors import AuthError, ConfigError


def provider(base: Path) -> PrivateXvfbProvider:
    return PrivateXvfbProvider(width=200, height=100, limits=Limits(), base=base)


@pytest.mark.desktop
async def test_a_folder_is_made_and_removed(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("p")
    one, two = provider(base), provider(base)
    await one.start()
    await two.start()  # beside the first, whose folder it leaves alone
    assert len(list(base.iterdir())) == 2
    assert [await p.find() for p in (one, two)] == [[], []]
    await one.create("one")
    assert [len(await p.find()) for p in (one, two)] == [1, 0]
    await one.destroy("one")
    await one.close()
    await one.close()
    await two.close()
    assert list(base.iterdir()) == []


@pytest.mark.desktop
async def test_what_a_killed_process_left_is_removed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    base = tmp_path_factory.mktemp("p")
    left = base / "abc" / "d" / "desktop-1"
    left.mkdir(parents=True)
    (base / "abc" / "lock").touch()
    (left / "guest.sock").touch()
    groups = ControlGroups.find()
    groups.create("dart-d-desktop-1", Limits())
    fresh = provider(base)
    await fresh.start()
    assert not (base / "abc").exists()
    assert groups.remove("dart-d-desktop-1")
    await fresh.close()


def test_control_groups_of_version_two(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "run"
    own.mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    (own / "cgroup.subtree_control").write_text("memory\n")
    groups = ControlGroups.find(root=tmp_path, membership="0::/user.slice/run\n")
    assert groups.missing == ["pids"]
    assert groups.create("one", Limits(memory_mb=3)) == [own / "one" / "cgroup.procs"]
    assert (own / "one" / "memory.max").read_text() == str(3 << 20)


def test_control_groups_of_version_one(tmp_path: Path) -> None:
    for controller in ("memory", "pids"):
        (tmp_path / controller / "run").mkdir(parents=True)
    membership = "9:name=systemd:/\n8:pids:/run\n4:cpu,memory:/run\n0::/\n"
    groups = ControlGroups.find(root=tmp_path, membership=membership)
    assert groups.missing == []
    entrances = groups.create("one", Limits(memory_mb=3, max_processes=9))
    assert {path.relative_to(tmp_path).parts[0] for path in entrances} == {"memory", "pids"}
    assert (tmp_path / "pids" / "run" / "one" / "pids.max").read_text() == "9"
    limit = tmp_path / "memory" / "run" / "one" / "memory.limit_in_bytes"
    assert limit.read_text() == str(3 << 20)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_groups_that_cannot_be_made_are_missing(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir(mode=0o500)
    groups = ControlGroups.find(root=tmp_path, membership="4:memory:/\n")
    assert groups.missing == ["memory", "pids"]


def test_the_suite_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean desktop-mini/make-file"):
        SUITE.check("desktop-mini/make-fill")
    with pytest.raises(AuthError, match="server_token_file"):
        SUITE.open_cluster(EnvConfig(servers=["http://127.0.0.1:1"]))
    (tmp_path / "token").write_text("\n")
    with pytest.raises(AuthError, match="is empty"):
        read_server_token(EnvConfig(server_token_file=str(tmp_path / "token")))
    (tmp_path / "token").write_text("secret\n")
    config = EnvConfig(servers=["http://127.0.0.1:1"], server_token_file=str(tmp_path / "token"))
    assert SUITE.check_machine(config) == "desktops of http://127.0.0.1:1"
