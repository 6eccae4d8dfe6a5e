"""Readers of the weight files of the originals: Caffe (as ONNX), Keras and torchvision.

Each turns one kind of file into named leaves of our tree, and `formats` makes a workdir of
them. Packages that only one kind of file needs are imported when such a file is read.
"""
