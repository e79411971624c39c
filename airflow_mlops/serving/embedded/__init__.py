"""The model server for one machine: TensorFlow Serving's protocol where its container image cannot run.

It differs on purpose where the original hurts an unattended machine: labels in the configuration file are honoured at start-up, a refused
reload changes nothing, a reload never waits for a model, an empty or missing base path takes nothing out of service, and a version that
cannot be loaded holds nothing else up.
"""
