"""One file for each stage of ``plan.py``: its function ``run`` does the stage's steps."""
