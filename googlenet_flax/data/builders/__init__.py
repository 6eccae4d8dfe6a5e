"""Builders that write CIFAR and ImageNet as TFDS data sets, without TensorFlow.

They run once, when a data set is missing. `data.prepared` reads the result.
"""
