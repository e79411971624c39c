"""Look at the beginning of a run whether its tasks can be done here at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_mlops.hooks.errors import airflow_errors

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True)
class Preflight:
    """For a first task's ``pre_execute``: fails it, with what to install, where a worker lacks what a later task would miss.

    The worker that has the first task is taken for all of them: it finds what is missing before anything moves, and no more than that.
    """

    extras: tuple[str, ...]

    def __call__(self, context: Context) -> None:
        from airflow_mlops.installation import require

        with airflow_errors():
            require(*self.extras)
