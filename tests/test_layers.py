"""The rooms of the package: imports point downward only, and the core does no I/O."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "instructjax"

# Every module of the top level and every room, from the ground up.  What stands on one line may not
# import each other; each line may import the lines before it.  A file that stands nowhere here
# fails the test.
FLOORS = [
  ["errors"],
  ["types", "system"],
  ["settings"],
  ["returns", "sharding", "optim"],
  ["losses", "models", "intervals", "compiler"],
  ["likelihood", "steps", "rollout", "packs"],
  ["sft", "reward", "bestofn"],
  ["ppo", "dpo"],
  ["data"],
  ["runs"],
  ["rewards"],
  ["stages"],
  ["label", "plan"],
  ["evals", "quickstart"],
  ["commands"],
  ["__main__"],
]
# The rooms inside `data`, in the same way.
DATA_FLOORS = [["records"], ["tokens"], ["batches", "curation"], ["public"]]
CORE = {
  "errors",
  "types",
  "returns",
  "losses",
  "sharding",
  "compiler",
  "optim",
  "models",
  "likelihood",
  "packs",
  "steps",
} | {
  "rollout",
  "sft",
  "reward",
  "ppo",
  "dpo",
  "bestofn",
}
# What the core may import; models/ also reads and writes weights.
PURE = {"chex", "jax", "flax", "optax", "numpy", "jaxtyping", "instructjax"}
FILES = {"models": {"gguf", "safetensors", "huggingface_hub"}}
STANDARD = {
  "__future__",
  "contextlib",
  "collections",
  "dataclasses",
  "functools",
  "math",
  "typing",
  "operator",
  "itertools",
}
STANDARD_OF_FILES = {
  "contextlib",
  "difflib",
  "errno",
  "importlib",
  "json",
  "os",
  "pathlib",
  "re",
  "shutil",
  "struct",
  "tempfile",
  "warnings",
}
MODULES, ROOMS = 19, 12  # the most that the top level may hold


def module_of(path: Path) -> str:
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


SOURCES = {module_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES.pop("")  # instructjax/__init__.py


def floor_of(module: str, floors: list[list[str]], place: str = "instructjax") -> int:
  """The number of the floor on which a module stands."""
  top = module.split(".")[0]
  numbers = [number for number, names in enumerate(floors) if top in names]
  assert len(numbers) == 1, (
    f"{place}.{module} stands on {len(numbers)} floors of tests/test_layers.py"
  )
  return numbers[0]


def imports(source: str, *, inside: bool = True) -> list[str]:
  """Full names of what a module imports; `inside` counts imports in functions and under
  TYPE_CHECKING too.
  """
  tree = ast.parse(source)
  nodes = ast.walk(tree) if inside else tree.body
  names = []
  for node in nodes:
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative imports are not used here"
      names += [f"{node.module}.{alias.name}" for alias in node.names]
  return names


def own_imports(source: str) -> list[str]:
  """The names that a module imports from this package, without `instructjax.`."""
  names = [
    name.removeprefix("instructjax.") for name in imports(source) if name.startswith("instructjax.")
  ]
  return [name for name in names if not name.startswith("__")]  # instructjax.__version__


def wrong(module: str, source: str) -> list[str]:
  """The imports of a module that go up, or aside to another room of the same floor."""
  offences = []
  for name in own_imports(source):
    here, there = floor_of(module, FLOORS), floor_of(name, FLOORS)
    same_room = module.split(".")[0] == name.split(".")[0]
    if there > here or (there == here and not same_room):
      offences.append(name)
    if module.startswith("data.") and name.startswith("data."):
      mine, theirs = module.split(".", 1)[1], name.split(".", 1)[1]
      here, there = floor_of(mine, DATA_FLOORS, "data"), floor_of(theirs, DATA_FLOORS, "data")
      if there > here or (there == here and mine.split(".")[0] != theirs.split(".")[0]):
        offences.append(name)
  return offences


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downward(module):
  assert not wrong(module, SOURCES[module])


def edges(sources: dict[str, str]) -> dict[str, set[str]]:
  """{module: the modules that it imports}; a package stands for its __init__.py."""
  graph: dict[str, set[str]] = {}
  for module, source in sources.items():
    targets = {name if name in sources else name.rpartition(".")[0] for name in own_imports(source)}
    graph[module] = {target for target in targets if target in sources and target != module}
  return graph


def cycles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
  """Paths that lead from a module back to itself."""
  done: set[str] = set()

  def visit(module: str, path: list[str]) -> Iterator[list[str]]:
    if module in path:
      yield path[path.index(module) :]
      return
    if module in done:
      return
    for target in sorted(graph[module]):
      yield from visit(target, [*path, module])
    done.add(module)

  for module in sorted(graph):
    yield from visit(module, [])


def test_there_is_no_import_cycle():
  assert not list(cycles(edges(SOURCES)))


def test_the_top_level_is_the_paper():
  entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
  rooms = [path.name for path in entries if path.is_dir()]
  modules = [path.name for path in entries if path.is_file()]
  assert len(rooms) <= ROOMS and len(modules) <= MODULES, (rooms, modules)


@pytest.mark.parametrize("module", [module for module in SOURCES if module.split(".")[0] in CORE])
def test_the_core_imports_arrays_only(module):
  allowed = PURE | STANDARD | FILES.get(module.split(".")[0], set())
  if module.startswith("models"):
    allowed |= STANDARD_OF_FILES
  assert {name.split(".")[0] for name in imports(SOURCES[module])} <= allowed


def test_models_are_the_only_part_of_the_core_that_opens_files():
  for module, source in SOURCES.items():
    if module.split(".")[0] in CORE - {"models"}:
      calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
      assert not {call.id for call in calls if isinstance(call, ast.Name)} & {
        "open",
        "print",
        "input",
      }, module


def test_the_command_line_imports_nothing_slow_at_the_top():
  allowed = {
    "__future__",
    "argparse",
    "collections",
    "functools",
    "os",
    "pathlib",
    "signal",
    "sys",
    "typing",
    "instructjax",
  }
  for module in ("commands.cli", "__main__"):
    assert {name.split(".")[0] for name in imports(SOURCES[module], inside=False)} <= allowed


def test_no_suppressions():
  for module, source in SOURCES.items():
    for word in ("type: ignore", "pyrefly: ignore", "noqa"):
      assert word not in source, module


def test_these_tests_can_fail():
  assert wrong("losses", "from instructjax import ppo") == ["ppo"]
  assert wrong("steps", "def f():\n  from instructjax.data.public import tone") == [
    "data.public.tone"
  ]
  assert wrong("rewards.runs", "from instructjax.stages import wiring") == ["stages.wiring"]
  assert wrong("plan.page", "from instructjax.label import store") == ["label.store"]
  assert wrong("data.records.records", "from instructjax.data.tokens import chat") == [
    "data.tokens.chat"
  ]
  assert not wrong("ppo", "from instructjax import losses, rollout")
  assert list(cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [["b", "c"]]
  with pytest.raises(AssertionError, match="0 floors"):
    floor_of("helpers", FLOORS)


def test_no_two_test_files_have_one_name():
  """pytest imports them by their names alone."""
  names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
  assert sorted(names) == sorted(set(names))
