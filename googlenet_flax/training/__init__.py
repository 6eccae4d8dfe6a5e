"""The computation of a run: state, steps, schedules, evaluation and sharding.

Nothing here writes files. Package `runs` stores a run, and `googlenet_flax.train` holds
the loop over steps.
"""
