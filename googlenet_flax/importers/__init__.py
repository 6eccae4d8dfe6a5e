"""Readers of weight files: Caffe, ONNX, Keras, torchvision, and our own exports.

Each reader maps one kind of file to the leaves of our parameter tree, and `formats` writes
them into a workdir. A package that only one kind of file needs is imported when such a file
is read.
"""
