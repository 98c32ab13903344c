"""LoRA: what a policy with an adapter computes, what is written of it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dart_gui.config.learning import TrainConfig
from dart_gui.errors import ConfigError, DataError
from dart_gui.model.adapter_files import (
    ADAPTER_WEIGHTS,
    BASE_FILE,
    BLOCK_OF,
    adapter_shapes,
    changes_nothing,
    read_adapter,
)
from dart_gui.model.folder import ADAPTER_CONFIG, base_of, check_model_folder
from dart_gui.model.lora import LoraPolicy
from dart_gui.model.policy_model import PolicyModel
from dart_gui.train.forward import response_logprobs
from dart_gui.train.samples import Sample
from dart_gui.train.trainer import Trainer

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
RANK, ALPHA = 4, 8
ALL = tuple(sorted(BLOCK_OF))


def lora(folder=TINY_AGENT, *, rank=RANK, alpha=ALPHA, targets=ALL, dtype="float32"):
    torch.manual_seed(0)
    return LoraPolicy(folder, rank=rank, alpha=alpha, targets=targets, device="cpu", dtype=dtype)


def stir(policy, seed=1, scale=0.05):
    """Another adapter than the one that changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def logprobs(policy):
    with torch.no_grad():
        return scores(policy)


def scores(policy):
    samples = [
        Sample(
            trajectory_id="t",
            prompt_ids=[839, *range(10, 10 + length)],
            response_ids=list(range(300, 310)),
            rollout_logprobs=[0.0] * 10,
            image_hashes=[],
            masked_token_ids=policy.masked_token_ids,
            temperature=1.0,
            policy_version=0,
            advantage=1.0,
            weight=0.5,
        )
        for length in (7, 20)
    ]
    return response_logprobs(policy, samples, lambda _: pytest.fail("there is no image"))[0]


@pytest.fixture(scope="module")
def base_logprobs():
    return logprobs(PolicyModel(TINY_AGENT, device="cpu"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(adapter folder, log-probabilities that the policy had that wrote it)"""
    folder = tmp_path_factory.mktemp("adapter") / "v1"
    policy = stir(lora())
    policy.save(folder)
    return folder, logprobs(policy)


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved[0], tmp_path / "copy"))


def close(a, b):
    return float((a - b).abs().max()) < 1e-4


def test_a_new_adapter_changes_nothing(base_logprobs, tmp_path):
    policy = lora()
    assert torch.equal(logprobs(policy), base_logprobs)
    policy.save(tmp_path / "new")
    assert changes_nothing(tmp_path / "new")
    outgoing = policy.text.layers[0].self_attn.o_proj.lora_B["default"].weight
    for value, nothing in ((-0.0, True), (1e-30, False)):
        outgoing.data[0, 0] = value
        policy.save(tmp_path / str(value))
        assert changes_nothing(tmp_path / str(value)) == nothing


def test_an_adapter_adds_alpha_by_r_of_b_a_to_a_weight():
    """By hand, on one projection: A is all 0.5, B all 0.25, so each entry of B A is 4 * 0.125, and
    alpha / r doubles it: 1 is added to each entry of W, the sum of x to each output."""
    policy = lora(targets=("o_proj",))
    layer = policy.text.layers[0].self_attn.o_proj
    x = torch.arange(128.0)[None] / 100
    before = layer(x)
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(0.5)
        layer.lora_B["default"].weight.fill_(0.25)
    assert (layer(x) - before).tolist()[0] == pytest.approx([float(x.sum())] * 128, rel=1e-4)


def test_only_the_adapter_can_be_trained():
    policy = lora(targets=("q_proj", "down_proj"))
    names = [name for name, each in policy.network.named_parameters() if each.requires_grad]
    assert len(names) == 4 * 2 * 2  # layers, targets, A and B
    assert all("language_model" in name and ".lora_" in name for name in names)
    assert all(each.dtype == torch.float32 for each in policy.network.parameters())


def test_the_adapter_is_float32_beside_a_base_in_bfloat16(tmp_path):
    policy = lora(dtype="bfloat16")
    kinds = {(".lora_" in n, p.dtype) for n, p in policy.network.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    policy.save(tmp_path / "v")
    kinds = {value.dtype for value in load_file(tmp_path / "v" / ADAPTER_WEIGHTS).values()}
    assert kinds == {torch.float32}
    assert logprobs(policy).isfinite().all()


def test_activations_that_are_computed_again_give_the_same_gradients():
    found, kept = [], []
    for again in (False, True):
        policy = stir(lora(targets=("q_proj", "down_proj")))
        config = TrainConfig(activation_checkpointing=again)
        Trainer(policy, config, read_image=lambda _: pytest.fail("there is no image"))
        policy.network.train()
        num_kept = 0

        def count(tensor):
            nonlocal num_kept
            num_kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = scores(policy).sum()
        loss.backward()
        kept.append(num_kept)
        found.append([p.grad for p in policy.network.parameters() if p.requires_grad])
    assert all(close(a, b) for a, b in zip(*found, strict=True))
    assert any(float(each.abs().max()) > 1.0 for each in found[0])
    assert kept[1] < kept[0] / 2


def test_without_the_adapter_the_policy_is_the_base(base_logprobs):
    policy = stir(lora())
    changed = logprobs(policy)
    with policy.as_reference():
        assert torch.equal(logprobs(policy), base_logprobs)
    assert torch.equal(logprobs(policy), changed)
    assert not close(changed, base_logprobs)


def test_merged_is_unmerged(saved, base_logprobs):
    folder, expected = saved
    check_model_folder(folder)
    assert base_of(folder) == TINY_AGENT
    assert close(logprobs(PolicyModel(folder, device="cpu")), expected)
    assert not close(expected, base_logprobs)


def test_adapters_are_merged_into_the_base_and_not_into_each_other(saved, base_logprobs, tmp_path):
    """Whatever came before, the last one counts: to the last bit, however often."""
    folder, _ = saved
    other = tmp_path / "other"
    stir(lora(targets=("q_proj", "up_proj")), seed=2).save(other)
    once = logprobs(PolicyModel(folder, device="cpu"))
    policy = PolicyModel(TINY_AGENT, device="cpu")
    for each in (other, folder, other, folder):
        policy.load_weights(each)
    assert torch.equal(logprobs(policy), once)
    policy.load_weights(TINY_AGENT)
    assert torch.equal(logprobs(policy), base_logprobs)


def test_the_folder_loads_in_peft_itself(saved):
    from peft import PeftModel

    folder, expected = saved
    policy = PolicyModel(TINY_AGENT, device="cpu")
    with pytest.warns(FutureWarning):  # of transformers, for what peft asks it
        PeftModel.from_pretrained(policy.network, folder)
    policy.network.eval()
    assert torch.equal(logprobs(policy), expected)


def test_a_policy_takes_back_what_it_saved(saved):
    folder, expected = saved
    policy = stir(lora(), seed=5)
    policy.load_weights(folder)
    assert torch.equal(logprobs(policy), expected)


def test_a_merged_model_is_a_plain_one(saved, tmp_path):
    folder, expected = saved
    PolicyModel(folder, device="cpu").save(tmp_path / "plain")
    assert not (tmp_path / "plain" / ADAPTER_CONFIG).exists()
    assert close(logprobs(PolicyModel(tmp_path / "plain", device="cpu")), expected)


@pytest.mark.parametrize("changed", [{"rank": 2}, {"alpha": 16}, {"targets": ("q_proj",)}])
def test_an_adapter_of_other_settings_is_not_continued(saved, changed):
    with pytest.raises(DataError, match="stay as they are in a run"):
        lora(**changed).load_weights(saved[0])


def test_a_whole_model_is_not_continued_as_an_adapter():
    with pytest.raises(DataError, match="holds a whole model"):
        lora().load_weights(TINY_AGENT)


def test_an_adapter_of_an_adapter_is_refused(saved):
    with pytest.raises(ConfigError, match="dart-gui merge"):
        lora(saved[0])


# --- what is refused by its files -------------------------------------------------------------


def cut_off(folder):
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def change_settings(folder, **changed):
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change_tensors(folder, change):
    path = folder / ADAPTER_WEIGHTS
    save_file(change(load_file(path)), path)


def lose_a_layer(folder):
    change_tensors(folder, lambda all_: {k: v for k, v in all_.items() if ".layers.2." not in k})


def shorten(folder):
    change_tensors(folder, lambda all_: all_ | {next(iter(all_)): torch.zeros(RANK, 5)})


def add_one_of_the_vision_tower(folder):
    name = "base_model.model.model.visual.blocks.0.mlp.gate_proj.lora_A.weight"
    change_tensors(folder, lambda all_: all_ | {name: torch.zeros(RANK, 96)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_off, "its header says"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), "holds no weights"),
        (lambda folder: (folder / BASE_FILE).unlink(), "dart_adapter.json"),
        (lambda folder: change_settings(folder, r=RANK + 1), "holds other tensors"),
        (lambda folder: change_settings(folder, use_dora=True), "use_dora"),
        (lambda folder: change_settings(folder, base_model_name_or_path="/none"), "/none"),
        (lose_a_layer, "holds other tensors"),
        (shorten, "holds other tensors"),
        (add_one_of_the_vision_tower, "holds other tensors"),
    ],
)
def test_a_folder_that_is_not_right_is_refused_and_changes_nothing(
    copy, base_logprobs, spoil, message
):
    spoil(copy)
    with pytest.raises(DataError, match=message):
        read_adapter(copy)
    policy = PolicyModel(TINY_AGENT, device="cpu")
    with pytest.raises(DataError, match=message):
        policy.load_weights(copy)
    assert torch.equal(logprobs(policy), base_logprobs)


def test_values_that_are_not_finite_are_refused(copy, base_logprobs):
    change_tensors(copy, lambda all_: {k: v * float("nan") for k, v in all_.items()})
    policy = PolicyModel(TINY_AGENT, device="cpu")
    with pytest.raises(DataError, match="not finite"):
        policy.load_weights(copy)
    assert torch.equal(logprobs(policy), base_logprobs)


def test_an_adapter_of_another_base_is_refused(saved, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(TINY_AGENT, other)
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1e-3
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    for policy in (PolicyModel(other, device="cpu"), lora(other)):
        with pytest.raises(DataError, match="another model, or one that has been changed"):
            policy.load_weights(saved[0])


def test_shapes_by_hand():
    text = {"hidden_size": 6, "intermediate_size": 10, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 3, "num_key_value_heads": 1}
    shapes = adapter_shapes(text, 2, ("k_proj", "down_proj"))
    start = "base_model.model.model.language_model.layers.0."
    assert shapes == {
        f"{start}self_attn.k_proj.lora_A.weight": (2, 6),
        f"{start}self_attn.k_proj.lora_B.weight": (2, 2),
        f"{start}mlp.down_proj.lora_A.weight": (2, 10),
        f"{start}mlp.down_proj.lora_B.weight": (6, 2),
    }


def test_the_default_targets_are_all_that_there_are():
    assert sorted(TrainConfig().lora_targets) == sorted(BLOCK_OF)
