"""Language models as pure functions, and their weights in public formats."""
