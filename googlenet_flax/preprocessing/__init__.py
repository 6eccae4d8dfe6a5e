"""What happens to pixels on the device, inside the step: crops, augmentation, scaling.

Everything is a pure JAX function of arrays and random keys. Files are read in `data`.
"""
