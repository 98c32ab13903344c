"""Do the workers have the same weights?"""

import pytest

from dart_gui.rollout.fingerprint import Agreement, Fingerprint


def fingerprint(checksum="a", ids=(1, 2), logprobs=(-0.5, -1.0)):
    return Fingerprint(checksum, tuple(ids), tuple(logprobs))


def test_json_and_back():
    assert Fingerprint.from_json(fingerprint().to_json()) == fingerprint()


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (fingerprint(), False),
        (fingerprint(logprobs=(-0.51, -1.01)), False),
        (fingerprint(checksum="b"), True),
        (fingerprint(logprobs=(-0.5, -1.2)), True),
        (fingerprint(ids=(3, 2), logprobs=(-0.51, -9.0)), False),  # a tie, then another text
        (fingerprint(ids=(3, 2), logprobs=(-0.9, -1.0)), True),
    ],
)
def test_rounding_is_no_difference_and_other_weights_are(other, differs):
    assert bool(other.difference(fingerprint())) is differs


def test_the_second_worker_is_measured_by_the_first():
    agreement = Agreement()
    assert agreement.suspect("w0", 1, fingerprint(), fresh=False) is None
    assert agreement.suspect("w1", 1, fingerprint(), fresh=False) is None
    assert agreement.suspect("w2", 1, fingerprint("b"), fresh=False) == "w2"
    assert agreement.suspect("w2", 2, fingerprint("b"), fresh=False) is None


def test_a_fresh_start_is_believed_before_weights_taken_in_place():
    agreement = Agreement()
    agreement.suspect("w0", 1, fingerprint("wrong"), fresh=False)
    assert agreement.suspect("w1", 1, fingerprint("right"), fresh=False) == "w1"
    assert agreement.suspect("w1", 1, fingerprint("right"), fresh=True) == "w0"
    assert agreement.suspect("w0", 1, fingerprint("right"), fresh=True) is None
    assert agreement.suspect("w2", 1, fingerprint("wrong"), fresh=False) == "w2"


def test_two_fresh_starts_that_differ_accuse_nobody():
    agreement = Agreement()
    agreement.suspect("w0", 1, fingerprint("a"), fresh=True)
    assert agreement.suspect("w1", 1, fingerprint("b"), fresh=True) is None


def test_a_worker_replaces_its_own_word():
    agreement = Agreement()
    agreement.suspect("w0", 1, fingerprint("a"), fresh=False)
    assert agreement.suspect("w0", 1, fingerprint("b"), fresh=False) is None
    assert agreement.suspect("w1", 1, fingerprint("b"), fresh=False) is None


def test_an_engine_without_fingerprints_is_never_suspect():
    agreement = Agreement()
    agreement.suspect("w0", 1, fingerprint(), fresh=True)
    assert agreement.suspect("w1", 1, None, fresh=False) is None
