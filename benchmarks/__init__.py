"""Benchmarks of q2export: one runner, cases in data files, peers measured side by side in the same run."""
