"""Serving: publish a SavedModel, configure the model server, move its traffic, and the model server for one machine."""
