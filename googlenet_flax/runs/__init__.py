"""Reading and writing of the directory of a run, and use of its trained network.

Checkpoints, metrics, traces and the lock are here. Training itself is in `training` and
`googlenet_flax.train`.
"""
