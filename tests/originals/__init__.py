"""The networks that ours must equal, written out again without our code."""
