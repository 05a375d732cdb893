"""Parity: proof that an engine equals the PyTorch reference, or the first layer where it does not.

``compare`` measures, ``bisect`` localises, ``report`` and ``summary`` show, ``golden`` stores inputs and
outputs for polygraphy. The two sides are whatever implements :mod:`.contracts`.
"""
