"""Groups of commands of ``airflow-mlops``, each with its flags: one module per group."""
