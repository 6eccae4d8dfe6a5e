"""What a run computes: state, steps, schedules, evaluation, and how devices share them.

Nothing here writes files. Where a run is stored is the business of `runs`, and the loop
over steps is `googlenet_flax.train`.
"""
