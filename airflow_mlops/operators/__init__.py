"""Operators: thin Airflow tasks over the core."""
