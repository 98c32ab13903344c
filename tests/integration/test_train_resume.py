"""Exact resume: on recorded batches an interrupted and resumed run computes, bit by bit, what an
uninterrupted one does, whether it trains the model or a LoRA adapter. Real model, real ledger, the
trainer's own loop; one thread."""

import hashlib
import io
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dart_gui import metrics
from dart_gui.config import from_dict
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DataError
from dart_gui.metrics import MetricsWriter
from dart_gui.model.policy_model import PolicyModel
from dart_gui.train.checkpoint import OPTIMIZER_FILE
from dart_gui.train.checkpoint_files import checkpoint_problems, weights_problems
from dart_gui.train.loop import TrainLoop
from dart_gui.train.main import build_trainer
from dart_gui.types import Completion, SamplingParams, Step, StopReason, Trajectory

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
NUM_TRAIN_STEPS = 5
CONFIG = from_dict(
    {
        "run": {"max_train_steps": NUM_TRAIN_STEPS},
        "model": {"path": str(TINY_AGENT), "device": "cpu"},
        "data": {"group_size": 2, "max_staleness": 20},
        "train": {
            "groups_per_step": 2,
            "num_minibatches": 2,  # two optimizer updates a step
            "warmup_steps": 9,  # of 10 updates
            "lr": 1e-3,
            "weight_decay": 0.01,
            "kl_coef": 0.05,
            "entropy_coef": 0.01,
            "checkpoint_every": 2,
        },
    },
    source="test",
)
# What the arithmetic decides. The rest are times, and numbers of versions, which a resume counts up.
COMPARED = ("loss", "grad_norm", "lr", "entropy", "kl_rollout", "kl_reference", "ratio_mean")
COMPARED += ("clip_fraction", "tis_mean", "num_samples", "num_tokens", "reward_mean")


class Killed(BaseException):
    """Stands for ``kill -9``: no handler of ours catches it, nothing is tidied up."""


class Publisher:
    """Dies when ``fatal_version`` is to be announced: it is published, its batch not acknowledged."""

    def __init__(self, fatal_version):
        self._fatal_version = fatal_version

    def publish(self, weights):
        if weights.policy_version == self._fatal_version:
            raise Killed

    def refresh(self):
        pass


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of several threads differ in their last bits from those of one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run whose groups are all stored and wait for the trainer."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    sampler = RoundRobinSampler(["miniwob/click-test-2"], seed=1, train_seed=lambda rng: 1)
    policy, rng = PolicyModel(TINY_AGENT, device="cpu"), random.Random(7)
    folder.mkdir()
    with DataManager.open(folder, CONFIG, sampler=sampler) as data:
        data.publish_version(0, str(TINY_AGENT))
        for _ in range(NUM_TRAIN_STEPS * CONFIG.train.groups_per_step * CONFIG.data.group_size):
            planned = data.next_episode(0)
            trajectory, images = record(policy, planned, rng)
            data.store(trajectory, images)
    return folder


def record(policy, planned, rng):
    """An episode of one or two steps on screens of one colour; the first member fails."""
    images, steps = {}, []
    for index in range(rng.choice((1, 2))):
        name, png = screenshot(rng)
        images[name] = png
        content = [
            {"type": "text", "text": f"Click {rng.randrange(100)}."},
            {"type": "image_url", "image_url": {"url": f"sha256:{name}"}},
        ]
        prompt = policy.render([{"role": "user", "content": content}], {name: pixels(policy, png)})
        reply = f"Thought: Button {rng.choice(('ONE', 'TWO'))}.\nAction: wait()"
        ids = policy.tokenizer(reply + "<|im_end|>", add_special_tokens=False)["input_ids"]
        completion = Completion(
            text=reply,
            prompt_ids=prompt.prompt_ids,
            response_ids=ids,
            rollout_logprobs=[-3.0 * rng.random() for _ in ids],
            entropies=[1.0] * len(ids),
            image_hashes=[name],
            finish_reason="stop",
            policy_version=0,
            worker_id="w",
            sampling=SamplingParams(temperature=1.0, max_tokens=32, seed=planned.seed),
        )
        steps.append(Step(index=index, completion=completion, actions=[]))
    success = planned.episode_id.endswith("1")
    trajectory = Trajectory(
        trajectory_id=planned.episode_id,
        run_id="run",
        group_id=planned.group_id,
        task=planned.task,
        attempt=planned.attempt,
        instruction="Click.",
        steps=steps,
        stop_reason=StopReason.DONE,
        reward=float(success),
        success=success,
        started_at=0.0,
        ended_at=1.0,
    )
    return trajectory, images


def screenshot(rng):
    buffer = io.BytesIO()
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    Image.new("RGB", (160, 210), colour).save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


def pixels(policy, png):
    return policy.pixels(png).grid


def launch(folder, *, fatal_version=-1, spoil=lambda trainer: None, config=CONFIG, fatal_ack=-1):
    """One life of the trainer, as ``train.main`` has it. ``spoil`` meets it after the restore."""
    with DataManager.open(folder, config) as data:
        trainer = build_trainer(config, data.load_image)
        die_before_acknowledging(data, fatal_ack)
        loop = TrainLoop(
            folder,
            config,
            trainer,
            data,
            Publisher(fatal_version),
            MetricsWriter(folder / "metrics.jsonl", "trainer"),
            monotonic=lambda: 0.0,
            sleep=lambda _: pytest.fail("there is a batch for each train step"),
        )
        loop.restore()
        spoil(trainer)
        loop.run()


def die_before_acknowledging(data, train_step):
    acknowledge = data.acknowledge

    def fatal(acknowledged, path):
        if acknowledged == train_step:
            raise Killed
        return acknowledge(acknowledged, path)

    data.acknowledge = fatal


def dies_between_two_updates(trainer):
    """The weights are half a train step further than any checkpoint."""
    update = trainer._update

    def fatal(samples, old, stats, progress):
        update(samples, old, stats, progress)
        if trainer.num_updates == 2 * NUM_TRAIN_STEPS - 1:
            raise Killed

    trainer._update = fatal


@pytest.fixture(scope="module", params=["full", "lora"])
def config(request):
    return CONFIG if request.param == "full" else limited(NUM_TRAIN_STEPS, lora_rank=4)


@pytest.fixture(scope="module")
def uninterrupted(recorded, config, tmp_path_factory):
    folder = shutil.copytree(recorded, tmp_path_factory.mktemp("whole") / "run")
    launch(folder, config=config)
    return folder


def measured(folder):
    """Of each train step the last time that it was trained."""
    events = {
        event["train_step"]: {key: event[key] for key in COMPARED}
        for event in metrics.read(folder / "metrics.jsonl")
        if event["event"] == "train_step"
    }
    assert sorted(events) == list(range(1, NUM_TRAIN_STEPS + 1))
    return events


def saved(folder):
    return folder / "checkpoints" / f"step-{NUM_TRAIN_STEPS:06d}"


def weights_file(folder):
    (found,) = folder.glob("*.safetensors")
    return found


def optimizer_state(folder):
    state = torch.load(saved(folder) / OPTIMIZER_FILE, weights_only=True)["state"]
    assert state
    return {(key, name): value for key, each in state.items() for name, value in each.items()}


def test_an_interrupted_run_computes_what_an_uninterrupted_one_does(
    recorded, uninterrupted, config, tmp_path
):
    folder = shutil.copytree(recorded, tmp_path / "run")
    with pytest.raises(Killed):  # version 4 is of train step 3: the checkpoint is of 2
        launch(folder, config=config, fatal_version=4)
    with pytest.raises(Killed):  # of train step 5: the checkpoint is of 4
        launch(folder, config=config, spoil=dies_between_two_updates)
    launch(folder, config=config)

    assert measured(folder) == measured(uninterrupted)
    weights = [weights_file(saved(each)) for each in (folder, uninterrupted)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert ("adapter" in weights[0].name) == (config.train.lora_rank > 0)
    states = [optimizer_state(each) for each in (folder, uninterrupted)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert (saved(folder) / "state.json").read_text() == (
        saved(uninterrupted) / "state.json"
    ).read_text()


def test_a_policy_version_keeps_its_weights_when_its_train_step_is_trained_again(
    recorded, tmp_path
):
    folder = shutil.copytree(recorded, tmp_path / "run")
    with pytest.raises(Killed):
        launch(folder, fatal_version=4)
    before = digest(folder, 4)
    # What comes of the step the second time is something else: in a run, other groups are claimed.
    launch(folder, config=limited(3), spoil=lambda trainer: trainer.optimizer.state.clear())
    assert digest(folder, 4) == before
    assert digest(folder, 6) != before


def test_a_checkpoint_that_was_saved_and_not_acknowledged_displaces_none(recorded, tmp_path):
    folder = shutil.copytree(recorded, tmp_path / "run")
    with pytest.raises(Killed):
        launch(folder, config=limited(NUM_TRAIN_STEPS, keep_checkpoints=1), fatal_ack=4)
    (folder / "checkpoints" / ".step-000006.partial").mkdir()
    launch(folder, config=limited(3, keep_checkpoints=1))
    with DataManager.open(folder, CONFIG) as data:
        newest = data.latest_checkpoint()
    assert newest.train_step == 3
    assert list(checkpoint_problems(Path(newest.path), 3)) == []
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"step-000003", "step-000004"}  # training overwrites the later one


def limited(max_train_steps, **train):
    run = CONFIG.run.model_copy(update={"max_train_steps": max_train_steps})
    changed = {"run": run, "train": CONFIG.train.model_copy(update=train)}
    return CONFIG.model_copy(update=changed)


def digest(folder, version):
    with DataManager.open(folder, CONFIG) as data:
        path = Path(data.weights(version).path)
    assert list(weights_problems(path)) == []
    return hashlib.sha256(weights_file(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("lost", ["optimizer", "num_updates"])
def test_a_resume_that_forgets_something_is_noticed(
    recorded, uninterrupted, config, tmp_path, lost
):
    def forget(trainer):
        if lost == "optimizer":
            trainer.optimizer.state.clear()
        else:
            trainer.num_updates = 0

    folder = shutil.copytree(recorded, tmp_path / "run")
    with pytest.raises(Killed):
        launch(folder, config=config, fatal_version=4)
    launch(folder, config=config, spoil=forget)
    assert measured(folder)[NUM_TRAIN_STEPS] != measured(uninterrupted)[NUM_TRAIN_STEPS]


@pytest.mark.parametrize("ranks", [(0, 4), (4, 0), (4, 2)])
def test_a_run_goes_on_with_the_rank_that_it_began_with(recorded, tmp_path, ranks):
    folder = shutil.copytree(recorded, tmp_path / "run")
    launch(folder, config=limited(1, lora_rank=ranks[0]))
    with pytest.raises(DataError, match=r"train\.lora_rank"):
        launch(folder, config=limited(2, lora_rank=ranks[1]))


def test_an_update_of_an_adapter_leaves_the_base_as_it_was(recorded, tmp_path):
    """Also with a KL to the base, for which the adapter is off now and then."""
    folder = shutil.copytree(recorded, tmp_path / "run")
    seen = []

    def before(trainer):
        seen.append((trainer, parameters(trainer)))

    launch(folder, config=limited(2, lora_rank=4), spoil=before)
    ((trainer, old),) = seen
    new = parameters(trainer)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    adapter = {name for name in old if ".lora_" in name}
    assert changed == adapter
    assert len(adapter) == 4 * 7 * 2
    assert 0 < measured_at(folder, 1)["kl_reference"] < measured_at(folder, 2)["kl_reference"]


def parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.network.named_parameters()}


def measured_at(folder, train_step):
    return next(
        event
        for event in metrics.read(folder / "metrics.jsonl")
        if event["event"] == "train_step" and event["train_step"] == train_step
    )
