"""The compiler's options of a step, by platform: the one table for a run and for its plan.

With the defaults of XLA a TPU waits for each collective, and a GPU runs operations in their order.
With these options weights of the next product are gathered while the one before is computed.
`steps.compiled` takes them for a run and `plan.aot` for its plan, so what is planned is what runs.

A user changes them with `config.mesh.compiler`, a text such as
`xla_tpu_scoped_vmem_limit_kib=65536,xla_enable_async_all_gather=none`, where `none` leaves an
option of the table out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import sharding
from instructjax.errors import UserError

Value = bool | int | str

# Those of a TPU are what MaxText calls continuation fusion: a collective is cut into steps, each of
# which is fused with a part of a product that runs meanwhile. The one of a GPU orders operations so
# that collectives and copies run beside products.
OPTIONS: dict[str, dict[str, Value]] = {
  "tpu": {
    "xla_enable_async_all_gather": True,
    "xla_tpu_enable_async_collective_fusion": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
    "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
    "xla_tpu_overlap_compute_collective_tc": True,
  },
  "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
  "cpu": {},
}


def options_for(own: str = "") -> dict[str, Value]:
  """Returns the options for the devices of the mesh, or of this machine without a mesh.

  `own` are the user's, which replace those of the table or add to them.

  Raises:
    UserError: where `own` is no list of NAME=VALUE.
  """
  chosen = dict(OPTIONS.get(sharding.platform(), {}))
  for name, value in read(own).items():
    if value == "none":
      chosen.pop(name, None)
    else:
      chosen[name] = value
  return chosen


def read(text: str) -> dict[str, Value]:
  """Returns the options of a text such as `xla_a=true,xla_b=65536`.

  Raises:
    UserError: for a part that is no NAME=VALUE.
  """
  values: dict[str, Value] = {}
  for part in filter(None, text.split(",")):
    name, equals, value = part.strip().partition("=")
    if not equals or not name or not value:
      raise UserError(
        f"config.mesh.compiler={text}: '{part.strip()}' is no NAME=VALUE; write options as "
        "xla_a=true,xla_b=65536, and NAME=none to leave one of ours out"
      )
    values[name] = _value(value)
  return values


def _value(text: str) -> Value:
  """A value as the compiler takes it: true or false, a whole number, or a word."""
  if text in ("true", "false"):
    return text == "true"
  return int(text) if text.isdecimal() else text


def jit(function: Callable, options: str = "", **settings: Any) -> Any:
  """Returns `jax.jit` of a function with the options of its platform and the user's own, `options`.

  `settings` are those of `jax.jit`, such as `donate_argnums`.
  """
  # Without any option None, so that the compiled program is the one of a plain `jax.jit`.
  return jax.jit(function, compiler_options=options_for(options) or None, **settings)


def check(own: str) -> None:
  """Compiles a small function with each option of the user, so that a wrong one is named at once.

  It does so for the devices of the mesh, or of this machine without a mesh.

  Raises:
    UserError: for an option, or a value, that the compiler of these devices does not take.
  """
  platform = sharding.platform()
  if not platform:
    read(own)
    return  # a mesh without devices is planned by arithmetic, and no compiler is asked
  ours = OPTIONS.get(platform, {})
  where = sharding.named(jax.P()) if sharding.is_sharded() else None
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=where)
  for name, value in read(own).items():
    if value == "none" and name not in ours:
      raise UserError(
        f"config.mesh.compiler: {name}=none leaves nothing out on {platform}, whose options are "
        f"{', '.join(ours) or 'none'}"
      )
    if value == "none":
      continue
    try:
      jax.jit(jnp.negative, compiler_options={name: value}).lower(scalar).compile()
    except (jax.errors.JaxRuntimeError, ValueError) as error:
      reason = str(error).strip().partition("\n")[0]
      written = str(value).lower() if isinstance(value, bool) else value
      raise UserError(
        f"config.mesh.compiler: the compiler for {platform} does not take {name}={written} "
        f"({reason[:160]}); correct it or leave it out"
      ) from error
