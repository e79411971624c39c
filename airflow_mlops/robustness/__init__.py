"""Robustness: does the model keep its answer on inputs that a person would still label the same?

`campaign.run_campaign` is the one entry point. Every module below imports TensorFlow or NumPy at its top; import them only where a campaign
runs (a stage), never in a DAG file. Definitions follow DeepXplore (SOSP 2017), DeepGauge (ASE 2018) and DeepHunter (ISSTA 2019).
"""
