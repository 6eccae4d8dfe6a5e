"""Activations, Table 1, arithmetic cost, plans of runs, and gradient ascent on pixels."""
