"""Connections: where each outside service lives and how to talk to it."""
