"""Public data: what the quickstart and the evaluations fetch, as records."""
