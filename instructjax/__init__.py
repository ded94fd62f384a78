"""InstructJAX: the InstructGPT system (Ouyang et al. 2022) in JAX.

Import the modules you need: `from instructjax import losses, returns, ppo`. The package itself
imports nothing, so that the command line starts at once.
"""

__version__ = "0.2.0"
