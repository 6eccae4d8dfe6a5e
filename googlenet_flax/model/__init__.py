"""The network: Table 1 and its variants, the layers, and the arithmetic below them.

The modules work on arrays alone. They know no data set, no config and no training.
"""
