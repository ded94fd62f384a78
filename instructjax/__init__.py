"""InstructJAX: the InstructGPT system (Ouyang et al. 2022) in JAX.

Import the modules you need: `from instructjax import losses, returns, ppo`. The package itself
imports nothing, so that the command line starts at once.

With `INSTRUCTJAX_CHECK_SHAPES=1` in the environment every function checks the shapes and types of
its arguments (docs/research.md).
"""

from instructjax.system import shapes

if shapes.are_wanted():
  shapes.install()

__version__ = "0.2.0"
