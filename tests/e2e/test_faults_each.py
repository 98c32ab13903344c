"""``kill -9`` of each process of one training run, one after the other; real browser, real model.

The tests share the run and go on where the one before stopped: after each kill the run must plan,
play, store and train again by itself.
"""

import json

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
# "No child outlives the supervisor by more than a few seconds": orphan.py gives them three to end
# in order. A busy machine may be slow to let them.
GONE_S = 15.0


@pytest.fixture(scope="module")
def run(training_run):
    training_run.start()
    training_run.wait_for_progress()
    return training_run


@pytest.mark.parametrize("role", ["browser", "worker", "rollout", "runner", "trainer"])
def test_the_run_goes_on_after_the_death_of(run, role, wait_until_gone):
    (victim,) = run.of_role(role)
    belongings = {
        "runner": run.of_role("browser") + run.of_role("renderer"),
        "browser": run.of_role("renderer"),
        "rollout": run.of_role("worker"),
    }.get(role, [])
    assert belongings or role in ("worker", "trainer")
    victim.kill()
    wait_until_gone([victim, *belongings], within_s=GONE_S)
    run.wait_for(f"another {role}", lambda: len(run.of_role(role)) == 1)
    run.wait_for_progress()
    assert "no finding" in run.check("--fast")


def test_nothing_outlives_a_dead_supervisor_and_resume_continues_the_run(run, wait_until_gone):
    run.wait_for("renderers", lambda: bool(run.of_role("renderer")))
    children = run.processes()
    roles = {"rollout", "worker", "runner", "trainer", "browser", "renderer"}
    assert roles <= set(children.values())
    run.supervisor.kill()
    run.supervisor.wait()
    waited_s = wait_until_gone(list(children), within_s=GONE_S)
    print(f"{len(children)} processes were gone {waited_s:.1f} s after the supervisor")
    steps_before = run.value("SELECT max(train_step) FROM durable_checkpoint")
    assert "no finding" in run.check("--fast"), "also with nobody there and the log not merged"

    last = max(run.value("SELECT max(train_step) FROM train_batch"), steps_before) + 1
    run.resume("--run.max_train_steps", str(last))
    assert run.supervisor.wait(240) == 0, run.tails()
    assert run.value("SELECT max(train_step) FROM durable_checkpoint") == last
    assert json.loads((run.folder / "status" / "trainer.json").read_text())["finished"] is True


def test_in_the_end_nothing_is_lost_and_nothing_was_trained_twice(run):
    assert "no finding" in run.check()
    versions = [event["policy_version"] for event in run.events("train_step")]
    assert versions == sorted(set(versions)), "policy_version repeats"
    trained = run.value("SELECT sum(used) FROM rollout_run")
    assert trained == run.value(
        "SELECT sum(num_trajectories) FROM train_batch WHERE state = 'acknowledged'"
    )
    assert trained > 0
    unexplained = "state = 'cancelled' AND (reason IS NULL OR reason = '')"
    assert run.value(f"SELECT count(*) FROM task_group WHERE {unexplained}") == 0
    assert run.value("SELECT count(*) FROM episode WHERE state = 'running'") == 0
