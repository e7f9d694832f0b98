"""Every generator comes back to where it was, and processes that are new have states of their own."""

import random

import numpy as np
import torch

from gossamer.training.random_states import apart, random_states, restore_random_states, seed_random_states


def drawn() -> tuple[float, ...]:
    """A number of each kind that keeps something for the next draw, and of each generator."""
    numpy = (float(np.random.random()), float(np.random.standard_normal()))
    return (torch.rand(1).item(), torch.randn(1).item(), random.random(), random.gauss(0, 1), *numpy)


def test_states_go_round() -> None:
    for warm_up in range(2):  # of a normal number's pair the second is kept by Python and NumPy
        for _ in range(warm_up):
            drawn()
        states = random_states()
        first = drawn()
        drawn()
        restore_random_states(states)
        assert drawn() == first
        assert all(isinstance(state, torch.Tensor) for state in states.values())


def test_seed_step_and_rank_decide_and_all_differ() -> None:
    found = set()
    for seed, step, rank in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**62, 10**9, 511)):
        seed_random_states(seed, step=step, rank=rank)
        once = drawn()
        seed_random_states(seed, step=step, rank=rank)
        assert drawn() == once
        found |= set(once)
    assert len(found) == 5 * len(once)


def test_the_callers_generators_are_left_as_they_were() -> None:
    before = random_states()
    with apart(3):
        inside = drawn()
    assert all(torch.equal(state, before[name]) for name, state in random_states().items())
    with apart(3):
        assert drawn() == inside
