"""The stages of the method, one file a command: what each reads, wires, runs and leaves."""
