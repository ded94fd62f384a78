"""Typed settings of every stage, their presets and ranges, and how a configuration is read."""
