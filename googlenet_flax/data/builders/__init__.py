"""Builders that write CIFAR and ImageNet as TFDS data sets, without TensorFlow.

They run once, where a set is missing. Reading the result is the business of `data`.
"""
