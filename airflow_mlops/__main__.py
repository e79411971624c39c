"""``python -m airflow_mlops`` is ``airflow-mlops``."""

from airflow_mlops.cli import main

raise SystemExit(main())
