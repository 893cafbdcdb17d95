import pytest

from tests.contracts.one_run_audit import audit, epsilon_lower_bound, p_value

TARGET = 2.0


def test_the_lower_bound_stays_below_epsilon():
    right, bound = audit(TARGET, seed=0)
    print(f"with noise: {right} of 100 right, epsilon >= {bound:.2f} at 95 %")
    assert bound <= TARGET


def test_without_noise_the_audit_finds_out():
    right, bound = audit(TARGET, seed=0, noisy=False)
    print(f"without noise: {right} of 100 right, epsilon >= {bound:.2f} at 95 %")
    assert bound > TARGET


def test_bound_of_known_counts():
    """All 100 of 100 right: (e^eps/(1 + e^eps))^100 = 0.05 gives 3.493 without delta; half right says nothing."""
    assert epsilon_lower_bound(100, delta=0.0) == pytest.approx(3.493, abs=0.001)
    assert epsilon_lower_bound(50) == 0.0
    assert epsilon_lower_bound(90, delta=1e-4) < epsilon_lower_bound(90, delta=0.0)


def test_p_value_falls_with_right_guesses_and_rises_with_epsilon():
    assert p_value(80, 0.5) < p_value(70, 0.5) < p_value(70, 1.0)
