"""Files of torch without torch, and names that come from the network."""

import pytest

np = pytest.importorskip("numpy")

from dart_gui.compat.disk import PublishedFolder, check_name  # noqa: E402
from dart_gui.compat.messages import attempt_seed, to_chat  # noqa: E402
from dart_gui.compat.torch_file import StepData, dump_tensors  # noqa: E402
from dart_gui.errors import DataError  # noqa: E402


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_torch_reads_what_is_written_without_it(tmp_path, count):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    logprobs = [-index / 7 for index in range(count)]
    path.write_bytes(StepData(logprobs, list(range(count))).dump())
    data = torch.load(path, weights_only=True)
    assert list(data) == ["logp", "token_ids"]
    assert data["logp"].dtype == torch.float32
    assert torch.equal(data["logp"], torch.tensor(logprobs, dtype=torch.float32))
    assert torch.equal(data["token_ids"], torch.arange(count))
    assert not data["logp"].requires_grad


def test_another_dtype_is_refused():
    with pytest.raises(KeyError):
        dump_tensors({"x": np.zeros(2, np.float64)})


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", ".x", "-x", "a..b", "x" * 129, "a\n", "ä", None, 3],
)
def test_a_name_that_is_no_name(tmp_path, name):
    with pytest.raises(DataError, match="task_id"):
        check_name("task_id", name)
    with pytest.raises(DataError):
        PublishedFolder(tmp_path, "task", name)


@pytest.mark.parametrize("name", ["a", "0a1b-2c", "trace-0123456789ab-1700000000", "x" * 128])
def test_a_name(name):
    assert check_name("task_id", name) == name


def test_a_reward_comes_last_and_files_appear_whole(tmp_path, monkeypatch):
    folder = PublishedFolder(tmp_path, "task", "trace")
    written = []
    monkeypatch.setattr(PublishedFolder, "_write", lambda _, name, data: written.append(name))
    folder.save_end([], 1.0)
    assert written[-1] == "reward.txt"


def test_neutral_parameters_are_not_reported_and_others_are():
    parameters = {
        "temperature": 0.7,
        "top_p": 1.0,
        "frequency_penalty": 0,
        "presence_penalty": 0.5,
        "best_of": 3,
        "seed": 1,
        "task_id": "a",
        "trace_id": "b",
        "step": 0,
        "logprobs": True,
    }
    body, ignored = to_chat([], parameters)
    assert ignored == ["presence_penalty", "best_of"]
    assert body["temperature"] == 0.7
    assert body["seed"] == attempt_seed(1, "a", "b", "0")
    assert "task_id" not in body


def test_seeds_differ_by_attempt_and_step_and_fit():
    seeds = {attempt_seed(1, "a", trace, str(step)) for trace in "bcd" for step in range(9)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
