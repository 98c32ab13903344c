"""The trainer on the real model: recorded ids in, better policy out, and back after a crash."""

import hashlib
import io
import math
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dart_gui.config import Config
from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.errors import ConfigError, DataError
from dart_gui.model.policy_model import PolicyModel
from dart_gui.train.checkpoint import TrainerState, load_checkpoint, save_checkpoint
from dart_gui.train.forward import response_logprobs
from dart_gui.train.samples import Sample, samples_of
from dart_gui.train.trainer import Trainer
from dart_gui.types import Completion, SamplingParams, Step, StopReason, Task, Trajectory

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
REPLIES = ("Thought: Button ONE.\nAction: wait()", "Thought: Submit.\nAction: call_user()")


def screenshot() -> tuple[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), "white").save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


NAME, PNG = screenshot()


def make_trainer(**changed) -> Trainer:
    config = Config().train.model_copy(update={"warmup_steps": 0, "lr": 1e-4, **changed})
    return Trainer(PolicyModel(TINY_AGENT, device="cpu"), config, read_image=lambda _: PNG)


def make_batch(policy: PolicyModel, *, train_step: int = 1) -> Batch:
    """Two trajectories for the same screen, as if sampled from ``policy``: the first reply was good,
    the second bad."""
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Click."},
                {"type": "image_url", "image_url": {"url": f"sha256:{NAME}"}},
            ],
        }
    ]
    prompt = policy.render(messages, {NAME: policy.pixels(PNG).grid})
    members = []
    for reply, advantage in zip(REPLIES, (1.0, -1.0), strict=True):
        ids = policy.tokenizer(reply + "<|im_end|>", add_special_tokens=False)["input_ids"]
        completion = Completion(
            text=reply,
            prompt_ids=prompt.prompt_ids,
            response_ids=ids,
            rollout_logprobs=score(policy, prompt.prompt_ids, ids),
            entropies=[0.0] * len(ids),
            image_hashes=[NAME],
            finish_reason="stop",
            policy_version=0,
            worker_id="w",
            sampling=SamplingParams(temperature=1.0, max_tokens=32, seed=0),
        )
        trajectory = Trajectory(
            trajectory_id=f"t{advantage}",
            run_id="r",
            group_id="g",
            task=Task(task_id="miniwob/click-test-2", seed=0),
            attempt=1,
            instruction="Click.",
            steps=[Step(index=0, completion=completion, actions=[])],
            stop_reason=StopReason.DONE,
            reward=max(0.0, advantage),
            success=advantage > 0,
            started_at=0.0,
            ended_at=1.0,
        )
        members.append(
            TrainTrajectory(trajectory=trajectory, advantage=advantage, weight=1.0, staleness=0)
        )
    group = BatchGroup(group_id="g", task_id="miniwob/click-test-2", trajectories=members)
    return Batch(
        train_step=train_step,
        trainer_version=0,
        groups=[group],
        staleness_mean=0.0,
        staleness_max=0,
    )


def score(policy: PolicyModel, prompt_ids: list[int], response_ids: list[int]) -> list[float]:
    sample = Sample(
        trajectory_id="t",
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        rollout_logprobs=[],
        image_hashes=[NAME],
        masked_token_ids=[],
        temperature=1.0,
        policy_version=0,
        advantage=0.0,
        weight=1.0,
    )
    with torch.no_grad():
        return response_logprobs(policy, [sample], lambda _: policy.pixels(PNG))[0].tolist()


def reply_logprobs(trainer: Trainer, batch: Batch) -> list[float]:
    samples = samples_of(batch.groups)
    with torch.no_grad():
        logprobs, _ = response_logprobs(trainer.policy, samples, trainer.pixels)
    return [float(part.sum()) for part in logprobs.split([len(s.response_ids) for s in samples])]


def test_a_step_moves_probability_from_the_bad_reply_to_the_good_one():
    trainer = make_trainer()
    batch = make_batch(trainer.policy)
    before = reply_logprobs(trainer, batch)
    stats = trainer.step(batch)
    after = reply_logprobs(trainer, batch)
    assert after[0] - after[1] > before[0] - before[1]
    assert trainer.num_updates == 1
    assert stats["num_samples"] == 2
    assert stats["ratio_mean"] == pytest.approx(1.0)  # one update: the proximal policy is this one
    assert math.isfinite(stats["grad_norm"])


def test_frozen_parameters_stay():
    trainer = make_trainer(freeze=["lm_head", "embed_tokens"])
    network = trainer.policy.network
    head, embedding = (
        network.lm_head.weight.clone(),
        trainer.policy.text.embed_tokens.weight.clone(),
    )
    norm = trainer.policy.text.norm.weight.clone()
    trainer.step(make_batch(trainer.policy))
    assert torch.equal(network.lm_head.weight, head)
    assert torch.equal(trainer.policy.text.embed_tokens.weight, embedding)
    assert not torch.equal(trainer.policy.text.norm.weight, norm)


@pytest.mark.parametrize(("freeze", "said"), [(["no_such"], "no_such"), ([""], "nothing to train")])
def test_a_freeze_that_makes_no_sense_is_refused(freeze, said):
    with pytest.raises(ConfigError, match=said):
        make_trainer(freeze=freeze)


def test_kl_to_the_reference_is_measured():
    config = Config().train.model_copy(update={"kl_coef": 0.1, "lr": 1e-3})
    reference = PolicyModel(TINY_AGENT, device="cpu")
    reference.network.requires_grad_(False)
    trainer = Trainer(
        PolicyModel(TINY_AGENT, device="cpu"), config, read_image=lambda _: PNG, reference=reference
    )
    batch = make_batch(trainer.policy)
    assert trainer.step(batch)["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.step(batch)["kl_reference"] > 0


def test_a_gradient_that_is_not_finite_skips_the_update_and_is_counted():
    trainer = make_trainer()
    batch = make_batch(trainer.policy)
    trainer.policy.network.lm_head.weight.register_hook(lambda grad: grad * float("nan"))
    before = [p.clone() for p in trainer.policy.network.parameters()]
    stats = trainer.step(batch)
    assert stats["num_skipped_updates"] == 1
    assert trainer.num_updates == 0
    assert all(
        torch.equal(a, b) for a, b in zip(before, trainer.policy.network.parameters(), strict=True)
    )


def test_microbatches_do_not_change_the_update():
    whole, split = make_trainer(), make_trainer(max_tokens_per_microbatch=90)
    batch = make_batch(whole.policy)
    a, b = whole.step(batch), split.step(batch)
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)


def test_the_learning_rate_falls_with_the_progress_of_the_run():
    trainer = make_trainer(lr_end=0.2)
    rates = [trainer.learning_rate(progress) for progress in (0.0, 0.5, 1.0)]
    assert rates == pytest.approx([1e-4, 0.6e-4, 0.2e-4])
    assert trainer.step(make_batch(trainer.policy), progress=0.5)["lr"] == pytest.approx(0.6e-4)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.6e-4)


def test_a_checkpoint_continues_exactly(tmp_path):
    trainer = make_trainer()
    batch = make_batch(trainer.policy)
    trainer.step(batch)
    state = TrainerState(train_step=1, num_updates=trainer.num_updates, elapsed_s=2.5)
    save_checkpoint(trainer, state, tmp_path / "step-000001")
    resumed = make_trainer()
    assert load_checkpoint(resumed, tmp_path / "step-000001") == state
    straight, again = trainer.step(batch), resumed.step(batch)
    assert again["loss"] == pytest.approx(straight["loss"], abs=1e-6)
    for a, b in zip(
        trainer.policy.network.parameters(), resumed.policy.network.parameters(), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("damage", ["optimizer.pt", "model.safetensors", "state.json"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path, damage):
    trainer = make_trainer()
    folder = tmp_path / "step-000001"
    save_checkpoint(trainer, TrainerState(train_step=1, num_updates=0, elapsed_s=0.0), folder)
    file = folder / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError, match=r"damaged|reading the weights"):
        load_checkpoint(make_trainer(), folder)


def test_a_failed_load_leaves_the_old_weights(tmp_path):
    trainer = make_trainer()
    folder = tmp_path / "weights"
    trainer.policy.save(folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    before = reply_logprobs(trainer, make_batch(trainer.policy))
    started = time.monotonic()
    with pytest.raises(DataError):
        trainer.policy.load_weights(folder)
    assert reply_logprobs(trainer, make_batch(trainer.policy)) == before
    assert time.monotonic() - started < 60
