"""Check at the start of a run that its tasks can run here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_mlops.hooks.errors import airflow_errors

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True)
class Preflight:
    """For a first task's ``pre_execute``: fails it, with what to install, where the worker lacks what a later task needs.

    Only the worker of the first task is checked, and taken to be like the others.
    """

    extras: tuple[str, ...]

    def __call__(self, context: Context) -> None:
        from airflow_mlops.installation import require

        with airflow_errors():
            require(*self.extras)
