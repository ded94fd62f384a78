"""Public data that the quickstart, the baselines and the evaluations use, as records."""
