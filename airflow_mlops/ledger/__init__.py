"""What must be remembered across crashes: dataset versions that were released to a run, and effects on the outside."""
