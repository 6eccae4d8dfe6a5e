"""Writers of a trained network for other programs: ONNX, StableHLO and safetensors.

Each writer turns a `Network` into bytes. `formats` compares them with the network and
writes them to a file. A package that only one format needs is imported when that format is
written.
"""
