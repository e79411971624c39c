"""Messages to people: Slack when a connection exists, else an outbox file."""
