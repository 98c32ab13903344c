import pytest

from dart_gui.config import CurationConfig
from dart_gui.data.curation import MemberFacts, reason_to_skip, skip_zero_variance, stages


def members(*rewards):
    return [
        MemberFacts(trajectory_id=f"t{i}", reward=r, success=r >= 1, num_steps=3)
        for i, r in enumerate(rewards)
    ]


@pytest.mark.parametrize(
    ("rewards", "reason"),
    [
        ((0.0, 0.0, 0.0), "zero_variance"),
        ((1.0, 1.0), "zero_variance"),
        ((0.5, 0.5 + 9e-7), "zero_variance"),
        ((0.5, 0.5 + 2e-6), None),
        ((0.0, 1.0), None),
        ((0.7,), "zero_variance"),
    ],
)
def test_zero_variance(rewards, reason):
    assert skip_zero_variance(members(*rewards)) == reason


def test_each_stage_has_its_switch():
    assert stages(CurationConfig(skip_zero_variance=False)) == []
    assert stages(CurationConfig()) == [skip_zero_variance]


def test_the_first_stage_that_refuses_names_the_reason():
    group = members(0.0, 1.0)
    assert reason_to_skip(group, []) is None
    assert reason_to_skip(group, [lambda m: None, lambda m: "b", lambda m: "c"]) == "b"
