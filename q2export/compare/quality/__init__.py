"""What quantizing a model cost: measurement of logits, limits, and the report as table, JSON and page."""
