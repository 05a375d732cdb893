"""The stages of ``build`` and ``export``: job, weights, graph, engine."""
