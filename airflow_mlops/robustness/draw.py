"""The random numbers of a campaign: every step has a generator of its own, a function of its address only."""

from __future__ import annotations

import numpy as np


def generator(*address: int) -> np.random.Generator:
    """Return the generator of an address such as (campaign seed, arm, island, generation), so that steps can be redone or shared out."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(address)))
