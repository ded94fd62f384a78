"""Checks on request: with the variable set, a wrong shape is an error; without it nothing is."""

import os
import subprocess
import sys

import pytest

from instructjax.system import shapes

# Value and target are swapped for other shapes that broadcast: a number comes out, and a wrong one.
CALL = """
import jax.numpy as jnp
from instructjax import likelihood, returns
print(returns.kl_k1(jnp.ones((2, 3)), jnp.ones(3)).shape)
"""


def run(**environment):
  return subprocess.run(
    [sys.executable, "-c", CALL],
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
    capture_output=True,
    text=True,
    check=False,
  )


def test_shapes_are_checked_on_request():
  wrong = run(**{shapes.VARIABLE: "1"})
  assert wrong.returncode == 1
  assert "TypeCheckError" in wrong.stderr and "kl_k1" in wrong.stderr
  assert run(**{shapes.VARIABLE: "0"}).stdout == "(2, 3)\n"


def test_a_missing_checker_says_what_to_install(monkeypatch):
  monkeypatch.setattr(shapes.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ImportError, match=r"instructjax\[check\]"):
    shapes.install()


def test_every_room_is_checked():
  modules = shapes.checked_modules()
  assert {"instructjax.losses", "instructjax.models", "instructjax.stages"} <= set(modules)
  assert "instructjax.types" not in modules
