"""The model registry: which versions exist, where they come from, and which one is the champion.

`base`, `files` and `nomination` are light; `mlflow` and `mlflow_server`, the only importers of MLflow, are for stages and for code inside a task's
`execute`.
"""
