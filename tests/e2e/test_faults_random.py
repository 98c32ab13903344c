"""``kill -9`` of random processes at random moments of a training run, and an audit after each.

The full form, 20 kills in ten minutes:

    DART_FAULTS_KILLS=20 DART_FAULTS_SECONDS=600 python -m pytest -s tests/e2e/test_faults_random.py

``DART_FAULTS_SEED`` chooses the victims and the moments.
"""

import os
import random
import time

import pytest

NUM_KILLS = int(os.environ.get("DART_FAULTS_KILLS", "4"))
SECONDS = float(os.environ.get("DART_FAULTS_SECONDS", "20"))
SEED = int(os.environ.get("DART_FAULTS_SEED", "1"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 60 * NUM_KILLS + SECONDS),  # a restart and an audit after each kill
]
ROLES = ["supervisor", "rollout", "worker", "runner", "trainer", "browser", "renderer"]
GONE_S = 15.0


class Killer:
    """Draws the victims so that every role has its turn before one has its second."""

    def __init__(self, run, seed):
        self._run = run
        self._rng = random.Random(seed)
        self._waiting = []
        self.killed = []

    def pause(self):
        """Kills fall evenly over the time, whatever the run is doing then."""
        time.sleep(self._rng.uniform(0.0, 2.0 * SECONDS / NUM_KILLS))

    def strike(self):
        """Kill a process of the next role that has one; its role."""
        if not self._waiting:
            self._waiting = self._rng.sample(ROLES, len(ROLES))
        for role in list(self._waiting):
            if role == "supervisor":
                self._run.supervisor.kill()
                self._run.supervisor.wait()
            elif victims := self._run.of_role(role):
                self._rng.choice(victims).kill()
            else:
                continue  # it is being started: another one's turn
            self._waiting.remove(role)
            self.killed.append(role)
            return role
        return None


def test_random_kills_lose_nothing(training_run, wait_until_gone):
    run = training_run
    run.start()
    run.wait_for_progress()
    killer = Killer(run, SEED)
    while len(killer.killed) < NUM_KILLS:
        killer.pause()
        children = list(run.processes())
        role = killer.strike()
        train_step = run.events("train_step")[-1]["train_step"]
        print(f"{len(killer.killed)}: killed {role} after train step {train_step}")
        if role == "supervisor":
            run.resume()  # at once: its children are still about to end
            waited_s = wait_until_gone(children, within_s=GONE_S)
            print(f"{len(children)} processes were gone {waited_s:.1f} s after it")
        run.check("--fast")
        assert run.supervisor.poll() is None, run.tails()
    run.wait_for_progress()
    assert run.end() == 130, run.tails()
    print(run.check())
    assert_consistent(run)


def assert_consistent(run):
    """What the audit says, from outside: by what was reported, and by the published table."""
    stored = run.value("SELECT count(*) FROM trajectory")
    reported = {event["trajectory_id"] for event in run.events("episode")}
    assert len(reported) <= stored
    versions = [event["policy_version"] for event in run.events("train_step")]
    assert versions == sorted(set(versions)), "policy_version repeats"
    assert run.value("SELECT max(used) FROM rollout_run") == 1
    assert run.value("SELECT count(*) FROM episode WHERE state = 'running'") == 0
