"""Hugging Face model folders in and out: `config.json` and safetensors.

A folder holds a language model, or a reward model as a sequence classifier.
"""

from instructjax.models.hf.configs import CONFIG, parse, read_json
from instructjax.models.hf.reading import INDEX, SINGLE, index, load
from instructjax.models.hf.rewards import load_reward, save_reward
from instructjax.models.hf.writing import save

__all__ = [
  "CONFIG",
  "INDEX",
  "SINGLE",
  "index",
  "load",
  "load_reward",
  "parse",
  "read_json",
  "save",
  "save_reward",
]
