"""The one exception that is meant for users.

The command line prints its message as one line and exits with code 2.
"""


class UserError(ValueError):
  """A mistake that the user can correct.

  The message carries the numbers, the place (file, line, field) and the remedy.
  """
