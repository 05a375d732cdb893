"""One module per library: each serves it to the runner in a process, and perhaps an interpreter, of its own.

These modules run in the peers' interpreter, so they import nothing of q2export but in ``q2export_engine``.
"""
