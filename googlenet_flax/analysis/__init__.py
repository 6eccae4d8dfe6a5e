"""What can be said of a network and of a planned run without training it.

Activations by name, Table 1 with its counts, arithmetic cost, and gradient ascent on
pixels. Nothing here measures time, which `performance` does.
"""
