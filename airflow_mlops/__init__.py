"""Apache Airflow 3 plugin package that retrains models and can prove why each one went live."""

__version__ = "0.1.0"
