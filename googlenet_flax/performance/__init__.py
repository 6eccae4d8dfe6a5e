"""Measurement of the training speed, compared with the limits of the devices."""
