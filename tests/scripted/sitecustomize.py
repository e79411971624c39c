"""Python runs this at its start when this directory is on PYTHONPATH: so a stage's process knows the stage ``scripted``, too."""

from __future__ import annotations

import scripted_stage

from airflow_mlops.stages import STAGES

STAGES["scripted"] = scripted_stage
