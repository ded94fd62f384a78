"""Models that a user's own Python function returns.

Their source is `file.py:function` or `package.module:function`. The function takes nothing and
returns (lm, params) or (lm, params, tokenizer), as `from_nnx` and `from_linen` give it.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from instructjax.errors import UserError
from instructjax.system import user_code
from instructjax.types import LM, Params

# A file that ends in .py or a dotted module, then a colon and a name.
SOURCE = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")


def is_python(source: str) -> bool:
  """Returns whether a source is `file.py:function` or `package.module:function`."""
  return SOURCE.fullmatch(source) is not None


def call_python(source: str) -> tuple[LM, Params, str]:
  """Calls the function of a source and returns its (lm, params, tokenizer reference or "").

  Raises:
    UserError: as `user_code.find` does, and where the function returns something else.
  """
  from flax import nnx

  function, file = user_code.find(source)
  # The user's function makes whole arrays, which are placed on the mesh later. It is called
  # without a mesh, so that Flax does not try to shard them by the names of its own axes.
  no_mesh = Mesh(np.empty((), object), ())
  guard = user_code.guarding(source, file.parent)
  with guard, jax.set_mesh(no_mesh), nnx.use_eager_sharding(False):
    result = function()
  is_model = isinstance(result, tuple) and len(result) in (2, 3) and isinstance(result[0], LM)
  if not is_model:
    raise UserError(
      f"{source}: returned {type(result).__name__}; a model is (lm, params) or (lm, params, "
      "tokenizer), as from_nnx and from_linen give it"
    )
  tokenizer = str(result[2]) if len(result) == 3 else ""
  return result[0], result[1], tokenizer


def lasting_source(source: str) -> str:
  """The source of a Python model in a form that is read from any working directory."""
  module, _, function_name = source.rpartition(":")
  if not module.endswith(".py"):
    return source
  return f"{Path(module).absolute()}:{function_name}"
