"""Sensors: wait inside a DAG for a state of the outside."""
