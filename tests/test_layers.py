"""Imports point downward only, the core does no I/O, and the command line imports nothing slow before it must."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "instructjax"

# A module or a whole package, and its layer.  A file that stands nowhere here fails the test.
LAYERS = {
  0: ["errors", "types", "losses", "returns"],
  1: ["sharding", "optim", "models"],
  2: ["likelihood", "steps", "rollout", "sft", "reward", "ppo", "bestofn"],
  3: ["data", "checkpoint", "writers", "intervals", "memory", "user_code", "processes", "atomic"],
  4: [
    "loop", "origin", "trainable", "provenance", "corpora", "stages", "reinforce", "generate", "sample", "export", "settings",
    "report", "quickstart", "bench", "plan", "label", "rewards", "evals", "selection", "tokenizer",
  ],
  5: ["cli"],
}
# What the pure layers may import; models/ also reads and writes weights.
PURE = {"jax", "flax", "optax", "numpy", "jaxtyping", "instructjax"}
FILES = {"models": {"gguf", "safetensors", "huggingface_hub"}}


def module_of(path: Path, package: Path = PACKAGE) -> str:
  parts = path.relative_to(package).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


def layer_of(module: str) -> int:
  top = module.split(".")[0]
  found = [layer for layer, names in LAYERS.items() if top in names]
  assert len(found) == 1, f"instructjax.{module} stands in {len(found)} layers of tests/test_layers.py"
  return found[0]


def imports(source: str, *, inside: bool = True) -> list[str]:
  """Full names of what a module imports; `inside` counts imports in functions and under TYPE_CHECKING too."""
  tree = ast.parse(source)
  nodes = ast.walk(tree) if inside else tree.body
  found = []
  for node in nodes:
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports are not used here"
      found += [f"{node.module}.{alias.name}" for alias in node.names]
  return found


def upward(module: str, source: str) -> list[str]:
  """The imports of a module that break the order of the layers."""
  own = [name.removeprefix("instructjax.") for name in imports(source) if name.startswith("instructjax.")]
  own = [name for name in own if not name.startswith("__")]  # instructjax.__version__
  return [name for name in own if layer_of(name) > layer_of(module)]


SOURCES = {module_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES.pop("")  # instructjax/__init__.py


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downward(module):
  assert not upward(module, SOURCES[module])


@pytest.mark.parametrize("module", [m for m in SOURCES if layer_of(m) <= 2])
def test_the_core_imports_arrays_only(module):
  allowed = PURE | FILES.get(module.split(".")[0], set())
  standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing", "operator", "itertools"}
  if module.startswith("models"):
    standard |= {
      "difflib",
      "json",
      "pathlib",
      "os",
      "re",
      "shutil",
      "tempfile",
      "contextlib",
      "importlib",
      "errno",
      "struct",
      "warnings",
    }
  assert {name.split(".")[0] for name in imports(SOURCES[module])} <= allowed | standard


def test_models_are_the_only_part_of_the_core_that_opens_files():
  for module, source in SOURCES.items():
    if layer_of(module) <= 2 and not module.startswith("models"):
      calls = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
      assert not {c.id for c in calls if isinstance(c, ast.Name)} & {"open", "print", "input"}, module


def test_the_command_line_imports_nothing_slow_at_the_top():
  assert {name.split(".")[0] for name in imports(SOURCES["cli"], inside=False)} <= {
    "__future__", "argparse", "collections", "dataclasses", "os", "pathlib", "sys", "typing", "instructjax",
  }  # fmt: skip
  own = [n for n in imports(SOURCES["cli"], inside=False) if n.startswith("instructjax.")]
  assert own == ["instructjax.errors.UserError"]


def test_no_suppressions_in_the_core():
  for module, source in SOURCES.items():
    assert "type: ignore" not in source and "pyrefly: ignore" not in source, module
    if layer_of(module) <= 2:
      assert "noqa" not in source, module


def test_these_tests_can_fail():
  assert upward("losses", "from instructjax import ppo") == ["ppo"]
  assert upward("steps", "def f():\n  from instructjax.data import tone") == ["data.tone"]
  assert not upward("ppo", "from instructjax import losses, rollout")
  with pytest.raises(AssertionError, match="0 layers"):
    layer_of("helpers")


def test_no_two_test_files_have_one_name():
  """pytest imports them by their names alone."""
  names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
  assert sorted(names) == sorted(set(names))
