"""The stages of the method, one file a command: what each reads, wires together, runs and leaves."""
