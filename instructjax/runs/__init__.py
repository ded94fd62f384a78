"""A run and its directory: the training loop, checkpoints, files of numbers, and opening what a run
left.
"""
