"""The machine and the operating system: memory, processes, files that appear whole, downloads, a
user's own code.
"""
