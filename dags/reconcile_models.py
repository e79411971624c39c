"""Every 15 minutes: do ledger, registry and model servers say the same of every model?"""

from airflow_mlops.pipelines import reconciliation_dag

reconciliation_dag()
