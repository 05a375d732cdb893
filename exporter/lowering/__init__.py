"""Lowerings: from the canonical graph to what a target runs, each a list of passes."""
