"""Places on this machine: what is written goes into local directories."""

from __future__ import annotations

import re

from instructjax.errors import UserError

# `gs://bucket/run`, and `gs:/bucket/run`, which is what a `Path` makes of it. A single letter
# before the colon is a drive.
REMOTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def require_local(place: object, option: str) -> None:
  """Checks that a place to write to is a path; `option` says who names it.

  Raises:
    UserError: it is an address, such as that of a bucket.
  """
  match = REMOTE.match(str(place))
  if match:
    raise UserError(
      f"{option}={place}: runs are written to directories of this machine, and {match[1]}:// is "
      "none; give a path, or mount the bucket and give its path"
    )
