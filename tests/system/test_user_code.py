"""A user's own function: the place of an error is in the user's code, wherever that code is."""

from pathlib import Path

import pytest

from instructjax.errors import UserError
from instructjax.system import user_code


def test_the_innermost_frame_is_the_users_even_beside_the_package():
  """A user who works in a checkout has the package in their own folder."""
  try:
    user_code.find("none.py:f")
  except UserError as error:
    place = user_code.innermost(error, user_code.PACKAGE.parent)
  assert place.startswith(f"{__file__}:")


def test_a_function_comes_with_its_file(tmp_path):
  path = tmp_path / "own.py"
  path.write_text("def f():\n  return 3\n")
  function, file = user_code.find(f"{path}:f")
  assert (function(), file) == (3, path)
  assert Path(user_code.find("json:dumps")[1]).name == "__init__.py"
  with pytest.raises(UserError, match="has no function 'g'; it has f"):
    user_code.find(f"{path}:g")


@pytest.mark.parametrize(
  "code", ["sys.exit()", "raise SystemExit(3)", "class E(BaseException): 0\nraise E"]
)
def test_whatever_is_raised_is_one_line_with_its_place(tmp_path, code):
  path = tmp_path / "own.py"
  path.write_text(f"import sys\n{code}\ndef f(): 0\n")
  line = 1 + len(code.splitlines())
  with pytest.raises(UserError, match=rf"own\.py: importing it raised \w+.* at {path}:{line}$"):
    user_code.find(f"{path}:f")


def test_an_error_that_cannot_be_written_is_named(tmp_path):
  with pytest.raises(UserError, match=r"^it raised Mute at "), user_code.guarding("it", tmp_path):
    raise type("Mute", (Exception,), {"__str__": lambda self: 1 / 0})


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), UserError("mine")])
def test_ctrl_c_and_errors_of_our_own_pass(tmp_path, error):
  with pytest.raises(type(error), match=r"^mine$"), user_code.guarding("it", tmp_path):
    raise error
