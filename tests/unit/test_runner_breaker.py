import pytest

from dart_gui.runner.breaker import TRANSITIONS, Breaker, BreakerState

CLOSED, OPEN, PROBING = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.PROBING


def tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker(threshold=3, base_s=1.0, max_s=4.0)
    for _ in range(3):
        breaker.failed(now)
    return breaker


def test_opens_at_the_threshold_only():
    breaker = Breaker(threshold=3, base_s=1.0)
    breaker.failed(0.0)
    breaker.failed(0.0)
    assert breaker.state is CLOSED
    breaker.failed(0.0)
    assert breaker.state is OPEN


def test_a_success_starts_the_count_anew():
    breaker = Breaker(threshold=3, base_s=1.0)
    for outcome in "ffsff":
        breaker.failed(0.0) if outcome == "f" else breaker.succeeded()
    assert breaker.state is CLOSED


def test_open_until_its_time_then_one_probe():
    breaker = tripped(now=10.0)
    assert not breaker.allows(10.99)
    assert breaker.allows(11.0)
    breaker.started()
    assert breaker.state is PROBING
    assert not breaker.allows(100.0)  # the probe decides, however long it takes


def test_failed_probes_double_the_delay_up_to_the_maximum():
    breaker, now, delays = tripped(), 0.0, []
    for delay in (1.0, 2.0, 4.0, 4.0):
        assert not breaker.allows(now + delay - 0.01)
        assert breaker.allows(now + delay)
        now += delay
        delays.append(delay)
        breaker.started()
        breaker.failed(now)
    assert sum(delays) == now


def test_a_probe_that_succeeds_closes_it_and_forgets_the_delay():
    breaker = tripped()
    breaker.started()
    breaker.failed(1.0)
    breaker.started()
    breaker.succeeded()
    assert breaker.state is CLOSED
    for _ in range(3):
        breaker.failed(50.0)
    assert breaker.allows(51.0)


def test_a_late_failure_does_not_prolong_it():
    breaker = tripped(now=0.0)
    breaker.failed(0.9)
    assert breaker.allows(1.0)


def test_a_late_success_closes_it():
    breaker = tripped()
    breaker.succeeded()
    assert breaker.state is CLOSED


@pytest.mark.parametrize("old", list(BreakerState))
@pytest.mark.parametrize("new", list(BreakerState))
def test_every_pair_of_states(old, new):
    allowed = {(CLOSED, OPEN), (OPEN, PROBING), (OPEN, CLOSED), (PROBING, OPEN), (PROBING, CLOSED)}
    assert (new in TRANSITIONS[old]) == ((old, new) in allowed)
