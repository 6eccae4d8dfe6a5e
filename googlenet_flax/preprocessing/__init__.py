"""Crops, augmentation and scaling of images on the device, inside the step.

Everything is a pure JAX function of arrays and random keys. Files are read in `data`.
"""
