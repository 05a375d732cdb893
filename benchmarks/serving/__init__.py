"""What the server promises under load, shown against a real process: see docs/serving.md."""
