"""Uploading a folder or a file to the Hugging Face hub.

The token is the one that `huggingface_hub` finds: HF_TOKEN in the environment, or that of `hf auth
login`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from instructjax.errors import UserError

CARD = "README.md"  # the file that the hub shows as the card of a model


def check(name: str) -> None:
  """Checks, before work is done, that something could be uploaded under a name.

  Raises:
    UserError: without `huggingface_hub`, for a name that cannot be one of the hub, and without a
      token.
  """
  hub = _import(name)
  try:
    hub.utils.validate_repo_id(name)
  except ValueError as error:
    raise UserError(
      f"--push-to-hub={name}: a name on the hub is OWNER/NAME, of letters, digits and . _ -"
    ) from error
  if not hub.get_token():
    raise UserError(
      f"--push-to-hub={name}: there is no token to write to the hub: run `hf auth login`, or set "
      "HF_TOKEN"
    )


def push(path: Path, name: str, *, private: bool = False) -> str:
  """Uploads a folder as a model of the hub, or a file as its card, and returns the address.

  The model is made where it is not there yet; `private` says how. Of one that is there, files of
  the same names are replaced and the others stay.

  Raises:
    UserError: as `check` does, where the token may not write there, and where the hub cannot be
      reached. What was to be uploaded is still on this machine.
  """
  check(name)
  hub = _import(name)
  # An address of another hub (HF_ENDPOINT) may have been set since the library was imported.
  api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
  try:
    # Without `private` the hub decides, by the settings of the owner.
    address = api.create_repo(name, private=private or None, exist_ok=True)
    if path.is_dir():
      api.upload_folder(repo_id=name, folder_path=path, commit_message="instructjax export")
    else:
      api.upload_file(
        repo_id=name,
        path_or_fileobj=path,
        path_in_repo=CARD,
        commit_message="instructjax card",
      )
  except hub.errors.HfHubHTTPError as error:
    status = getattr(error.response, "status_code", 0)
    if status in (401, 403):
      raise UserError(
        f"--push-to-hub={name}: the token may not write there ({status}): check the name, and that "
        f"the token has write access; {path} is complete on this machine"
      ) from error
    raise UserError(_unreachable(name, path, error)) from error
  except (OSError, ValueError, hub.errors.HTTPError) as error:
    raise UserError(_unreachable(name, path, error)) from error
  return str(address)


def _import(name: str) -> ModuleType:
  """The library.  Raises UserError where it is not installed."""
  try:
    import huggingface_hub
    from huggingface_hub import constants, errors, utils
  except ImportError as error:
    raise UserError(
      f"--push-to-hub={name}: needs huggingface_hub: pip install huggingface_hub"
    ) from error
  assert constants and errors and utils  # they are loaded now, as attributes of the package
  return huggingface_hub


def _unreachable(name: str, path: Path, error: Exception) -> str:
  """The message for an upload that failed; the first line of the error says how."""
  reason = str(error).strip().partition("\n")[0] or type(error).__name__
  return (
    f"--push-to-hub={name}: the hub did not take it ({reason}); {path} is complete on this "
    f"machine: run again, or upload it with `hf upload {name} {path}`"
  )
