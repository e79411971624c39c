"""Triggers: await, ask the core's decider, yield one event."""
