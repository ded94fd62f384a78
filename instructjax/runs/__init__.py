"""A run and its directory.

loop, progress               the training loop and what it shows
checkpoint                   states on disk
writers, sinks               files of numbers, and other places for them
origin, description,         how a model is opened from a source, and how a run leaves its own
python_models
provenance                   which model it was that answered
report/                      one page a run
"""

# The stages that leave a model, and say in manifest.json that they are finished.
TRAINING = ("pretrain", "sft", "rl_init", "reward", "ppo", "grpo", "dpo")
