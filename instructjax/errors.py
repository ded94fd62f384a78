"""The one exception that is meant for users: the command line prints it as a line and exits with
code 2.
"""


class UserError(ValueError):
  """Something the user can mend.  The message carries the numbers, the place (file, line, field)
  and the remedy.
  """
