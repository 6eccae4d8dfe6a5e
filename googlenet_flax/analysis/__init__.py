"""Analysis of networks and of planned runs without training.

The modules give activations by name, Table 1 with its counts, arithmetic cost, the plan of
a run, and gradient ascent on pixels. `performance` measures time.
"""
