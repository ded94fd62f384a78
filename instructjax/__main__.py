"""`python -m instructjax`: the command line."""

import sys

from instructjax.commands.cli import start

sys.exit(start())
