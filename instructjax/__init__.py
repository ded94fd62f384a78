"""InstructJAX: the InstructGPT system (Ouyang et al. 2022) in JAX.

Import the modules you need: `from instructjax import losses, returns, ppo`. The package itself
imports nothing, so that the command line starts at once; a module is imported when it is named.

`__all__` names the modules that are promised: what their own `__all__` lists, or what has no
underscore where there is none, changes only as CHANGELOG.md says. The rest may change at any time.

With `INSTRUCTJAX_CHECK_SHAPES=1` in the environment every function checks the shapes and types of
its arguments (docs/research.md).
"""

from importlib import import_module
from types import ModuleType

from instructjax.system import shapes

if shapes.are_wanted():
  shapes.install()

__version__ = "0.2.0"

__all__ = [
  "bestofn",
  "dpo",
  "errors",
  "likelihood",
  "losses",
  "models",
  "optim",
  "packs",
  "ppo",
  "returns",
  "reward",
  "rollout",
  "settings",
  "sft",
  "sharding",
  "steps",
  "types",
]


def __getattr__(name: str) -> ModuleType:
  """Imports a promised module when it is first named, as in `instructjax.losses`."""
  if name not in __all__:
    raise AttributeError(f"module 'instructjax' has no attribute '{name}'")
  return import_module(f"instructjax.{name}")


def __dir__() -> list[str]:
  """Lists the promised modules too, for whoever looks for them with the Tab key."""
  return sorted([*globals(), *__all__])
