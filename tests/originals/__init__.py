"""The networks that ours must equal, written again without our code."""
