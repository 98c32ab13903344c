"""Curated batches on the real model: every loss, borrowed successes, masks, spans, imitation."""

import dataclasses
import hashlib
import io
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from dart_gui.config import Config
from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.model.policy_model import PolicyModel
from dart_gui.train.foreign import ForeignEpisode, ForeignStep, as_foreign, foreign_trajectory
from dart_gui.train.forward import response_logprobs
from dart_gui.train.loop import curation_values
from dart_gui.train.samples import samples_of
from dart_gui.train.sft import imitate
from dart_gui.train.trainer import Trainer
from dart_gui.types import Completion, SamplingParams, Step, StopReason, Task, Trajectory

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
REPLIES = ("Thought: Button ONE.\nAction: wait()", "Thought: Submit.\nAction: call_user()")
TASK = Task(task_id="miniwob/click-test-2", seed=0)


def screenshot() -> tuple[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), "white").save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


NAME, PNG = screenshot()
MESSAGES = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Click."},
            {"type": "image_url", "image_url": {"url": f"sha256:{NAME}"}},
        ],
    }
]


def make_trainer(**changed) -> Trainer:
    config = Config().train.model_copy(update={"warmup_steps": 0, "lr": 3e-4, **changed})
    return Trainer(PolicyModel(TINY_AGENT, device="cpu"), config, read_image=lambda _: PNG)


def foreign(policy, reply: str, name: str = "lent") -> Trajectory:
    step = ForeignStep(messages=MESSAGES, reply=reply, actions=[])
    episode = ForeignEpisode(
        task=TASK, instruction="Click.", steps=[step], images={NAME: PNG}, reward=1.0
    )
    return foreign_trajectory(policy, episode, name)


def sampled(policy, reply: str, *, versions=(0,), shift: float = 0.0) -> Trajectory:
    """A trajectory that ``policy`` answers with ``reply`` at every step; its recorded
    log-probabilities are ``shift`` above the true ones."""
    prompt = policy.render(MESSAGES, {NAME: policy.pixels(PNG).grid})
    ids = policy.reply_ids(reply)
    steps = [
        Step(
            index=index,
            completion=Completion(
                text=reply,
                prompt_ids=prompt.prompt_ids,
                response_ids=ids,
                rollout_logprobs=[0.0] * len(ids),
                entropies=[float(index)] * len(ids),
                image_hashes=[NAME],
                finish_reason="stop",
                policy_version=version,
                worker_id="w",
                sampling=SamplingParams(temperature=1.0, max_tokens=32, seed=0),
            ),
            actions=[],
        )
        for index, version in enumerate(versions)
    ]
    trajectory = Trajectory(
        trajectory_id=reply,
        run_id="r",
        group_id="g",
        task=TASK,
        attempt=1,
        instruction="Click.",
        steps=steps,
        stop_reason=StopReason.DONE,
        reward=0.0,
        success=False,
        started_at=0.0,
        ended_at=1.0,
    )
    true = [x + shift for x in logprobs_of(policy, [member(trajectory)])[: len(ids)]]
    steps = [
        dataclasses.replace(
            step, completion=dataclasses.replace(step.completion, rollout_logprobs=true)
        )
        for step in steps
    ]
    return dataclasses.replace(trajectory, steps=steps)


def member(trajectory, advantage=1.0, **changed) -> TrainTrajectory:
    values = {"weight": 1.0 / len(trajectory.steps), "staleness": 0} | changed
    return TrainTrajectory(trajectory=trajectory, advantage=advantage, **values)


def batch_of(*members) -> Batch:
    group = BatchGroup(group_id="g", task_id=TASK.task_id, trajectories=list(members))
    return Batch(
        train_step=1, trainer_version=0, groups=[group], staleness_mean=0.0, staleness_max=0
    )


def logprobs_of(policy, members) -> list[float]:
    samples = samples_of([BatchGroup(group_id="g", task_id="t", trajectories=list(members))])
    with torch.no_grad():
        return response_logprobs(policy, samples, lambda _: policy.pixels(PNG))[0].tolist()


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo", "dppo"])
def test_every_loss_moves_probability_to_the_good_reply(loss):
    trainer = make_trainer(loss=loss)
    good, bad = (sampled(trainer.policy, reply) for reply in REPLIES)
    batch = batch_of(member(good, 1.0), member(bad, -1.0))

    def margin():
        return sum(logprobs_of(trainer.policy, [member(good)])) - sum(
            logprobs_of(trainer.policy, [member(bad)])
        )

    before = margin()
    stats = trainer.step(batch)
    assert margin() > before
    assert stats["staleness_buckets"]["0"]["ess"] == pytest.approx(1.0, abs=1e-3)
    assert stats["mask_fraction"] == 0.0


def test_a_borrowed_success_is_imitated_and_left_out_of_the_ratios():
    trainer = make_trainer()
    lent = foreign(trainer.policy, REPLIES[0])
    bad = sampled(trainer.policy, REPLIES[1])
    before = sum(logprobs_of(trainer.policy, [member(as_foreign(lent), foreign=True)]))
    stats = trainer.step(batch_of(member(bad, -0.5), member(lent, 1.5, foreign=True, weight=0.5)))
    assert sum(logprobs_of(trainer.policy, [member(lent, foreign=True)])) > before
    assert (stats["num_samples"], stats["num_foreign_samples"]) == (2, 1)
    assert stats["num_tokens"] == len(bad.steps[0].completion.response_ids)
    assert stats["kl_rollout"] == pytest.approx(0.0, abs=1e-6)


def test_a_borrowed_success_below_the_mean_is_not_pushed_away():
    trainer = make_trainer()
    lent = foreign(trainer.policy, REPLIES[0])
    bad = sampled(trainer.policy, REPLIES[1])
    stats = trainer.step(batch_of(member(bad, 0.0), member(lent, -1.0, foreign=True)))
    assert stats["grad_norm"] == pytest.approx(0.0, abs=1e-7)


def test_steps_that_are_not_selected_leave_the_others_as_loud_as_they_were():
    policy = PolicyModel(TINY_AGENT, device="cpu")
    three = sampled(policy, REPLIES[0], versions=(0, 1, 1))
    whole = samples_of(batch_of(member(three, staleness=2)).groups)
    part = samples_of(batch_of(member(three, staleness=2, selected=[True, False, True])).groups)
    assert [s.weight for s in whole] == pytest.approx([1 / 3] * 3)
    assert [s.weight for s in part] == pytest.approx([1 / 3] * 2)
    assert [s.staleness for s in whole] == [2, 1, 1]
    values = curation_values(batch_of(member(three, selected=[True, False, True])))
    assert values["selected_fraction"] == pytest.approx(2 / 3)
    assert (values["num_borrowed"], values["episode_steps"]) == (0, 3)


def test_masked_tokens_have_no_gradient_and_do_not_make_others_louder():
    # Recorded log-probabilities 0.1 above the true ones: rho = exp(-0.1) = .905 everywhere.
    settings = {"off": {}, "token": {"token_band": (0.95, 1.05)}, "step": {"step_band": 0.05}}
    norms, fractions = {}, {}
    for name, changed in settings.items():
        trainer = make_trainer(**changed)
        off = sampled(trainer.policy, REPLIES[0], shift=0.1)
        on = sampled(trainer.policy, REPLIES[1])
        stats = trainer.step(batch_of(member(on, 1.0), member(off, 0.0)))
        norms[name], fractions[name] = stats["grad_norm"], stats["mask_fraction"]
    assert fractions["off"] == 0.0
    num = [len(PolicyModel(TINY_AGENT).reply_ids(reply)) for reply in REPLIES]
    assert fractions["token"] == fractions["step"] == pytest.approx(num[0] / sum(num))
    assert norms["token"] == pytest.approx(norms["off"], rel=1e-4)
    assert norms["step"] == pytest.approx(norms["off"], rel=1e-4)


def test_measurements_are_kept_per_staleness():
    trainer = make_trainer()
    fresh = sampled(trainer.policy, REPLIES[0])
    stale = sampled(trainer.policy, REPLIES[1], shift=0.1)
    stats = trainer.step(batch_of(member(fresh, 1.0), member(stale, -1.0, staleness=3)))
    buckets = stats["staleness_buckets"]
    assert set(buckets) == {"0", "3"}
    assert buckets["0"]["kl"] == pytest.approx(0.0, abs=1e-6)
    # k3 of mu against old at d = -0.1: exp(-.1) + .1 - 1
    assert buckets["3"]["kl"] == pytest.approx(math.exp(-0.1) - 0.9, abs=1e-4)
    assert buckets["3"]["num_tokens"] == len(stale.steps[0].completion.response_ids)


def test_span_weights_silence_a_part_of_the_reply():
    reply = "Thought: The button.\nAction: click(start_box='(20,30)')"
    silent = make_trainer(thought_weight=0.0, action_weight=0.0, coordinate_weight=0.0)
    only = make_trainer(thought_weight=0.0, action_weight=0.0)
    batch = batch_of(member(sampled(silent.policy, reply), 1.0))
    assert silent.step(batch)["grad_norm"] == pytest.approx(0.0, abs=1e-7)
    assert only.step(batch)["grad_norm"] > 0


def test_imitation_learns_what_it_is_shown():
    trainer = make_trainer(lr=1e-3)
    lent = [foreign(trainer.policy, reply, reply) for reply in REPLIES[:1]]
    losses = []
    imitate(
        trainer,
        lent,
        num_steps=8,
        batch_size=2,
        seed=0,
        report=lambda number, measured: losses.append(measured["loss"]),
    )
    num_tokens = len(lent[0].steps[0].completion.response_ids)
    first = -sum(logprobs_of(PolicyModel(TINY_AGENT), [member(lent[0], foreign=True)])) / num_tokens
    assert losses[0] == pytest.approx(first, rel=1e-3)  # nats per token
    assert losses[-1] < 0.7 * losses[0]
