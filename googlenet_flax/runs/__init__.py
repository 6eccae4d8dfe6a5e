"""What lies in the directory of a run, and who reads and writes it.

Checkpoints, metrics, traces and the lock are here, and the trained network that a
checkpoint gives back. Training itself is not.
"""
