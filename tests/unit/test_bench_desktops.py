"""The arithmetic of the benchmarks of desktops, against numbers worked out by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.desktops.__main__ import docker_overrides
from benchmarks.desktops.report import desktops_per_gb
from benchmarks.soak.report import Left, Outcome, judge
from benchmarks.soak.runs import Follower
from benchmarks.soak.trend import Bound, trend_of
from benchmarks.soak.watch import Observer, Sample, groups_of, module_of, sockets, still_running
from benchmarks.utilisation import published
from benchmarks.utilisation.episode import MIN_STEPS, Setting, script
from benchmarks.utilisation.figures import Played, ceiling, shares_of_gain
from benchmarks.utilisation.meter import Meter, Part
from dart_gui.fakes import FakeClock
from dart_gui.types import Action, Click, Hotkey, Point, Press, Scroll, TypeText, Wait

# --- utilisation -----------------------------------------------------------------------------


def test_a_second_is_counted_once() -> None:
    clock = FakeClock()
    meter = Meter(clock=clock)
    with meter.measure(Part.SET_UP):
        clock.advance(1)
        with meter.measure(Part.SHOT):
            clock.advance(2)
        clock.advance(4)
    meter.move(Part.SHOT, Part.SETTLE, 1.5)
    meter.move(Part.SHOT, Part.WAIT, 9)  # no more than there is
    expected = {Part.SET_UP: 5, Part.SHOT: 0, Part.SETTLE: 1.5, Part.WAIT: 0.5}
    assert dict(meter.seconds) == expected


def played(**seconds: float) -> Played:
    named = {Part[name.upper()]: value for name, value in seconds.items()}
    return Played(arm="x", seconds={part: named.get(part, 0.0) for part in Part})


def test_utilisation_is_the_share_of_work() -> None:
    episode = played(model=40, wait=30, action=6, settle=4, shot=20)
    assert (episode.wall_s, episode.model_s, episode.own_s) == (100, 40, 60)
    assert episode.utilisation() == pytest.approx(0.30)
    assert episode.utilisation(settling=False) == pytest.approx(0.26)
    assert episode.own_utilisation() == pytest.approx(0.5)
    assert episode.own_utilisation(settling=False) == pytest.approx(26 / 60)


def test_the_gain_is_shared_out() -> None:
    shares = shares_of_gain(50, 150, {"waits": 130, "pool": 55})
    assert shares == {"waits": pytest.approx(0.8), "pool": pytest.approx(0.05)}
    with pytest.raises(ValueError, match="no gain"):
        shares_of_gain(50, 50, {})


def test_no_environment_is_faster_than_the_model() -> None:
    assert ceiling([played(model=40, wait=80), played(model=60, wait=20)]) == 2.0


@pytest.mark.parametrize(
    ("action", "code", "waits_s"),
    [
        (Click(point=Point(3, 4)), "pyautogui.click(3, 4, button='left')", 0.1),
        (
            TypeText(text="ab\n"),
            "pyautogui.write('ab', interval=0.1)\ntime.sleep(0.5)\n\npyautogui.press('enter')",
            0.9,
        ),
        (Hotkey(keys=("ctrl", "l")), "pyautogui.hotkey('ctrl', 'l')", 0.1),
        (Press(key="a"), "pyautogui.press('a')", 0.1),
        (Scroll(direction="down", point=Point(1, 2)), "pyautogui.scroll(-5, x=1, y=2)", 0.1),
    ],
)
def test_the_published_code_and_its_sleeps(action: Action, code: str, waits_s: float) -> None:
    assert published.code_of(action).strip() == code
    assert published.waits_in(action) == pytest.approx(waits_s)


def test_what_the_published_client_has_no_code_for_is_refused() -> None:
    with pytest.raises(ValueError, match="no code"):
        published.code_of(Wait())


def test_the_model_is_as_slow_for_every_arm() -> None:
    setting = Setting(num_steps=50, seed=3, low_s=2, high_s=4)
    assert setting.latencies() == setting.latencies()
    assert all(2 <= each <= 4 for each in setting.latencies())
    assert setting.latencies() != Setting(num_steps=50, seed=4, low_s=2, high_s=4).latencies()


def test_the_shortest_episode_does_what_is_looked_for() -> None:
    def typed(number: int) -> list[str]:
        actions = script(number, width=640, height=400)
        return [action.text for action in actions if isinstance(action, TypeText)]

    assert typed(MIN_STEPS) == ["touch s1\n", "touch s2\n", "touch s3\n"]
    assert len(typed(MIN_STEPS - 1)) == 2


def test_desktops_per_gb() -> None:
    assert desktops_per_gb([100e6, 150e6]) == 8
    with pytest.raises(ValueError, match="take memory"):
        desktops_per_gb([])


# --- the soak ---------------------------------------------------------------------------------


def test_a_trend_is_the_median_slope() -> None:
    at_s = [0.0, 10, 20, 30, 40, 50]
    trend = trend_of(at_s, [100, 105, 110, 900, 120, 125])  # one peak, half a unit a second
    assert trend.growth == pytest.approx(25)
    assert (trend.median, trend.low, trend.high) == (115, 100, 900)
    with pytest.raises(ValueError, match="5 samples"):
        trend_of([0, 1], [0, 1])


def test_many_samples_have_the_trend_of_a_few() -> None:
    trend = trend_of(range(5000), [0.01 * at for at in range(5000)])
    assert trend.growth == pytest.approx(49.99)


def test_a_bound_allows_the_larger_of_the_two() -> None:
    bound = Bound(share=0.1, least=6)
    small, large = trend_of(range(5), [10.0] * 5), trend_of(range(5), [100, 102, 104, 106, 108])
    assert bound.allows(small)
    assert bound.allows(large)  # by 8, and 10.4 are allowed
    assert not Bound(share=0.01, least=6).allows(large)


def outcome(*, grows: bool = False, processes: list[str] | None = None) -> Outcome:
    samples = [
        Sample(
            at_s=10.0 * at,
            num_processes=30,
            num_displays=4,
            num_fds=300 + (20 * at if grows else at % 3),
            num_files=12,
            num_leased=at % 4,
            memory_mib=1500,
            memory_by={"runner": 500, "desktops": 1000},
        )
        for at in range(30)
    ]
    left = Left(
        processes=processes or [], files=[], groups=[], x_sockets=[], num_leases=0, audit=""
    )
    return Outcome(
        samples=samples,
        num_episodes=9,
        num_train_steps=2,
        num_envs_replaced=0,
        returncode=0,
        left=left,
    )


def broken(what: Outcome) -> list[str]:
    return [verdict.what for verdict in judge(what, warm_up_s=50) if not verdict.held]


def test_a_run_that_holds_and_one_that_leaks() -> None:
    assert broken(outcome()) == []
    assert broken(outcome(grows=True)) == ["open file descriptors"]
    assert broken(outcome(processes=["7 Xvfb"])) == ["processes after the end"]


def test_this_process_is_seen_and_still_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    clock = FakeClock()
    observer = Observer([os.getpid()], tmp_path, lambda: 3, clock=clock)
    clock.advance(2)
    sample = observer.look()
    assert (sample.at_s, sample.num_files, sample.num_leased) == (2, 1, 3)
    assert sample.num_processes >= 1
    assert sample.num_fds > 2
    assert sample.memory_mib > 1
    assert sum(sample.memory_by.values()) == pytest.approx(sample.memory_mib)
    assert os.getpid() in {each.pid for each in still_running(list(observer.seen.values()))}


def test_memory_is_told_by_module() -> None:
    commands = {
        "python -m dart_gui trainer --run x": "trainer",
        "python -m dart_gui.rollout.worker {}": "worker",
        "python -m dart_gui.env.desktop.session --width 9": "desktops",
        "Xvfb :0": "desktops",
    }
    assert {each: module_of(each) for each in commands} == commands


def test_the_control_groups_of_a_run_are_those_that_its_processes_were_in() -> None:
    v1 = "7:memory:/agents/dart-a1b2-d0\n3:cpu:/helpers\n4:pids:/dart-a1b2-d0\n"
    assert groups_of(v1) == {"memory/agents/dart-a1b2-d0", "pids/dart-a1b2-d0"}
    assert groups_of("0::/user.slice/dart-c3-d1\n") == {"user.slice/dart-c3-d1"}
    assert groups_of("0::/user.slice\n") == set()


def test_events_are_read_once_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    follower.read()  # not there yet
    runner = {"event": "runner", "num_envs_busy": 3, "num_envs_replaced": 1}
    lines = "".join(json.dumps(event) + "\n" for event in ({"event": "episode"}, runner))
    path.write_text(lines + '{"event": "epi')
    follower.read()
    with path.open("a") as file:
        file.write('sode"}\n{"event": "train_step"}\n')
    follower.read()
    follower.close()
    assert (follower.num_episodes, follower.num_train_steps) == (2, 1)
    assert (follower.num_leased, follower.num_envs_replaced) == (3, 1)


def test_containers_are_those_that_were_set_up() -> None:
    environ = {"DART_DOCKER_HOST": "unix:///d.sock", "DART_DOCKER_IMAGE": "small"}
    assert docker_overrides("", {}) == ()
    assert docker_overrides("", environ) == (
        "env.docker_host=unix:///d.sock",
        "env.docker_image=small",
    )
    assert docker_overrides("full", environ)[1] == "env.docker_image=full"


def test_a_socket_of_an_x_server_that_runs_is_another_programs(tmp_path: Path) -> None:
    folder = tmp_path / ".X11-unix"
    folder.mkdir()
    for name in ("X0", "X77"):
        (folder / name).touch()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_text(
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"0000: 00000002 00000000 00010000 0001 01 1 {folder}/X77\n"
        "0000: 00000002 00000000 00010000 0001 01 2\n"
    )
    assert sockets(folder, tmp_path) == {"X0"}
    assert sockets(tmp_path / "none", tmp_path) == set()
