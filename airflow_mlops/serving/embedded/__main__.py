"""``python -m airflow_mlops.serving.embedded``: the same as ``airflow-mlops serve``."""

from __future__ import annotations

import sys

from airflow_mlops.serving.embedded.main import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
