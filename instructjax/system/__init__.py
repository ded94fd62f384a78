"""The machine and the operating system: memory, processes, files, downloads and a user's code."""
