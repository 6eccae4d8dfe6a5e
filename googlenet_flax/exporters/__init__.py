"""Writers of a trained network for other programs: ONNX, StableHLO and safetensors.

Each takes a `Network` and returns bytes, which `formats` compares with the network and
writes. Packages that only one format needs are imported when that format is written.
"""
