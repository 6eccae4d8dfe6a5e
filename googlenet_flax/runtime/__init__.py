"""Services for every command: errors, signals, streams, memory and other processes.

These modules depend on no other folder of the package, so every folder may import them.
"""
