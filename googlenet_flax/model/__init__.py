"""The network: Table 1 and its variants, the layers, and the operations they consist of.

The modules work on arrays alone and do not depend on data sets, configs or training.
"""
