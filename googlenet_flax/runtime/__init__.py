"""The process that a command runs in: errors, signals, devices, other processes, memory.

Nothing here knows of networks, data or runs, so every other folder may import it.
"""
