"""Robustness: does the model keep its answer on inputs that a person would still label the same?

`run_campaign` is the one entry point. Every module below imports TensorFlow or NumPy at its top; import them only where a campaign runs (a stage),
never in a DAG file. Definitions follow DeepXplore (SOSP 2017), DeepGauge (ASE 2018) and DeepHunter (ISSTA 2019).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_mlops.robustness.campaign import CampaignReport, run_campaign
    from airflow_mlops.robustness.config import CampaignConfig
    from airflow_mlops.robustness.models import Probe
    from airflow_mlops.robustness.profile import Profile
    from airflow_mlops.robustness.recipes import RecipeBook

__all__ = ["CampaignConfig", "CampaignReport", "Probe", "Profile", "RecipeBook", "run_campaign"]

HOMES = {"CampaignConfig": "config", "Probe": "models", "Profile": "profile", "RecipeBook": "recipes"}


def __getattr__(name: str) -> Any:
    """Import a public name, and TensorFlow with it, only when somebody asks for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES.get(name, 'campaign')}"), name)
