"""One machine: Airflow, MLflow and the model server as supervised processes, and the demo on top of them."""
