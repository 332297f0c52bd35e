"""Strength is a noise level, every step is run, and the shift is the model's."""

import itertools

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxwatchd.engine import schedule
from fluxwatchd.variants import VARIANTS


@settings(deadline=None)
@given(
    strength=st.floats(1e-3, 1.0),
    steps=st.integers(1, 100),
    mu=st.floats(0.0, 2.0),
)
def test_it_starts_at_strength_runs_every_step_and_ends_clean(strength, steps, mu):
    sigmas = schedule.sigmas(strength, steps, mu)
    assert sigmas[0] == strength
    assert sigmas[-1] == 0.0
    assert len(sigmas) == steps + 1
    assert all(a > b for a, b in itertools.pairwise(sigmas))


@settings(deadline=None)
@given(u=st.floats(0.0, 1.0), mu=st.floats(-1.0, 2.0))
def test_the_shift_can_be_undone(u, mu):
    assert schedule.unshifted(schedule.shifted(u, mu), mu) == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_schnell_at_strength_1_is_diffusers_schedule(steps):
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    ours = schedule.sigmas(1.0, steps, schedule.native_mu(VARIANTS["schnell"]))
    assert np.abs(np.array(ours) - theirs.sigmas.numpy()).max() < 1e-6


@pytest.mark.parametrize("steps", [1, 20, 50])
def test_dev_at_strength_1_is_diffusers_schedule_for_its_native_tile(steps):
    theirs = FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
        base_image_seq_len=256, max_image_seq_len=4096,
    )  # fmt: skip
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=1.15)
    ours = schedule.sigmas(1.0, steps, schedule.native_mu(VARIANTS["dev"]))
    assert np.abs(np.array(ours) - theirs.sigmas.numpy()).max() < 1e-6


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 4), (1.1, 4), (0.5, 0)])
def test_what_is_no_schedule_is_refused(strength, steps):
    with pytest.raises(ValueError, match="no schedule"):
        schedule.sigmas(strength, steps)
