"""Trained networks as other programs read them: one module for each kind of file."""
