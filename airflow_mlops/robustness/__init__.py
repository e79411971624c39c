"""Robustness: does the model keep its answer on inputs that a person would still label the same?

`run_campaign` is the one entry point. Every module below imports TensorFlow or NumPy at its top; import them only where a campaign runs (a stage),
never in a DAG file. Definitions follow DeepXplore (SOSP 2017), DeepGauge (ASE 2018) and DeepHunter (ISSTA 2019).
"""

from __future__ import annotations

from typing import Any

ENTRY = ("CampaignConfig", "CampaignReport", "run_campaign")


def __getattr__(name: str) -> Any:
    """Import the campaign, and TensorFlow with it, only when somebody asks for it."""
    if name not in ENTRY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from airflow_mlops.robustness import campaign

    return getattr(campaign, name)
