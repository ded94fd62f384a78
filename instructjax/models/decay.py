"""Which parameters weight decay shrinks: matrices and embeddings, but no bias and no norm."""

from __future__ import annotations

from typing import Any

import jax

from instructjax.types import LM, Leaf, Params, PyTree

# The names under which a stage holds a model within its parameters.
HOLDERS = ("policy", "value", "lm")


def decaying(lm: LM, params: Params) -> PyTree[bool]:
  """Marks the parameters that decay, for the trained part of a model or of several on `lm`.

  The table of the model says which leaves decay. The arrays cannot: those of the blocks are stacked
  over layers, so that a bias has as many axes as a matrix. The matrices of an adapter decay, and so
  do the weights of a scalar head, which is a matrix with one output.
  """

  def decays(path: tuple[Any, ...], _: Any) -> bool:
    names = [jax.tree_util.keystr((key,), simple=True) for key in path]
    while names[0] in HOLDERS:
      names.pop(0)
    if names[0] == "adapter":
      return True
    if names[0] == "head":
      return names[-1] == "w"
    leaf: Any = lm.table
    for name in names:
      leaf = leaf[name]
    assert isinstance(leaf, Leaf)
    return leaf.decays

  return jax.tree_util.tree_map_with_path(decays, params)
