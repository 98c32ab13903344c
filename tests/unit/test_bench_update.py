"""What the benchmark of weight updates says of a load, on hand-made requests."""

import pytest

from benchmarks.update.figures import cost, split
from benchmarks.update.pool import Answered

BEFORE = [Answered(0.0, 1.0, 0), Answered(1.0, 1.5, 0), Answered(1.0, 3.0, 0)]


def test_an_update_is_charged_with_what_it_could_touch():
    in_flight, inside, after = Answered(3.5, 4.5, 1), Answered(5.0, 5.2, 0), Answered(9.0, 9.5, 0)
    before, during = split([*BEFORE, in_flight, inside, after], began=4.0, ended=6.0)
    assert before == BEFORE
    assert during == [in_flight, inside]


def test_delayed_is_slower_than_any_before():
    during = [Answered(4.0, 6.0, 0), Answered(4.0, 6.5, 2), Answered(5.0, 5.5, 1)]
    found = cost("restart", before=BEFORE, during=during, update_s=2.0, none_open_s=0.5)
    assert (found.num_requests, found.num_delayed, found.num_resent) == (3, 1, 2)
    assert (found.latency_before_s, found.latency_p50_s, found.latency_max_s) == (1.0, 2.0, 2.5)


def test_a_load_without_requests_says_nothing():
    with pytest.raises(ValueError, match="0 requests before and 1 during"):
        cost("restart", before=[], during=[BEFORE[0]], update_s=1.0, none_open_s=0.0)
