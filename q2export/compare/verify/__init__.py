"""Parity: proof that an engine equals the PyTorch reference, or the first layer where it does not.

``compare`` measures, ``localise`` finds the layer, ``page`` and ``summary`` show.
"""
