"""InstructJAX: the InstructGPT system (Ouyang et al. 2022) in JAX.

Import what you need: `from instructjax import losses, returns, ppo`.  Nothing is imported here,
so that the command line starts at once.
"""

__version__ = "0.2.0"
