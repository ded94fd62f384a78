"""Uploads to the hub, to a stand-in on this machine that speaks the calls that an upload makes."""

import base64
import http.server
import json
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.system import hub

pytestmark = pytest.mark.filterwarnings("default::UserWarning:huggingface_hub")


@pytest.fixture
def stand_in(monkeypatch):
  """A hub that takes small files; `files` are those that were committed, `status` what it says."""
  state = SimpleNamespace(created=[], files={}, authorization=set(), status=200)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers["Content-Length"]))
      state.authorization.add(self.headers["Authorization"])
      if state.status != 200:
        self.reply(state.status, {"error": "no"})
      elif self.path == "/api/repos/create":
        state.created.append(json.loads(body))
        name = state.created[-1]
        self.reply(200, {"url": f"{url}/{name.get('organization', '')}/{name['name']}"})
      elif "/preupload/" in self.path:
        files = [
          {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
          for file in json.loads(body)["files"]
        ]
        self.reply(200, {"files": files})
      elif "/commit/" in self.path:
        for line in body.decode().splitlines():
          entry = json.loads(line)
          if entry["key"] == "file":
            content = base64.b64decode(entry["value"]["content"])
            state.files[entry["value"]["path"]] = content
        self.reply(200, {"commitUrl": f"{url}/me/my-model/commit/1", "commitOid": "1"})
      else:
        self.reply(200, {"errors": [], "warnings": []})  # the check of a card

    def reply(self, status, value):
      text = json.dumps(value).encode()
      self.send_response(status)
      self.send_header("Content-Length", str(len(text)))
      self.send_header("Content-Type", "application/json")
      self.end_headers()
      self.wfile.write(text)

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  url = f"http://127.0.0.1:{server.server_address[1]}"
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  monkeypatch.setattr(constants, "ENDPOINT", url)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  yield state
  server.shutdown()
  thread.join()
  server.server_close()


def test_a_folder_becomes_a_model(stand_in, tmp_path):
  (tmp_path / "config.json").write_text("{}")
  (tmp_path / "model.safetensors").write_bytes(b"weights")
  address = hub.push(tmp_path, "me/my-model", private=True)
  assert address.endswith("/me/my-model")
  assert stand_in.files == {"config.json": b"{}", "model.safetensors": b"weights"}
  (created,) = stand_in.created
  assert created["name"] == "my-model" and created["organization"] == "me"
  assert created.get("private") is True or created.get("visibility") == "private"
  assert stand_in.authorization == {"Bearer hf_secret"}


def test_a_file_becomes_the_card(stand_in, tmp_path):
  (tmp_path / "card.md").write_text("# A card\n")
  hub.push(tmp_path / "card.md", "me/my-model")
  assert stand_in.files == {"README.md": b"# A card\n"}
  assert "private" not in stand_in.created[0]  # the owner's settings decide


def test_a_token_that_may_not_write(stand_in, tmp_path):
  stand_in.status = 403
  with pytest.raises(UserError, match=r"me/x: the token may not write there \(403\).*write access"):
    hub.push(tmp_path, "me/x")


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
  monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  with pytest.raises(UserError, match=f"did not take it.*hf upload me/x {tmp_path}"):
    hub.push(tmp_path, "me/x")


def test_without_a_token_or_with_a_bad_name(monkeypatch):
  monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
  with pytest.raises(UserError, match=r"no token.*hf auth login.*HF_TOKEN"):
    hub.check("me/x")
  with pytest.raises(UserError, match="OWNER/NAME"):
    hub.check("me/my model/x")


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  with pytest.raises(UserError, match="needs huggingface_hub: pip install"):
    hub.check("me/x")


def test_export_checks_first_and_uploads_last(monkeypatch, tmp_path, capsys):
  from instructjax.stages import export

  calls = []
  monkeypatch.setattr(hub, "check", lambda name: calls.append(name))
  monkeypatch.setattr(export, "export", lambda *args, **options: calls.append("export") or tmp_path)
  monkeypatch.setattr(hub, "push", lambda *args, **options: calls.append((args, options)) or "url")
  words = ["export", "--model=runs/x", f"--out={tmp_path}"]
  assert cli.main([*words, "--push-to-hub=me/x", "--private"]) == 0
  assert calls == ["me/x", "export", ((tmp_path, "me/x"), {"private": True})]
  assert capsys.readouterr().out.splitlines() == [str(tmp_path), "url"]
  assert cli.main([*words, "--private"]) == 2
  assert "--push-to-hub" in capsys.readouterr().err


def test_card_uploads_what_it_wrote(monkeypatch, tmp_path):
  from instructjax.evals import card

  calls = []
  monkeypatch.setattr(hub, "check", calls.append)
  monkeypatch.setattr(card, "write", lambda model, evaluation, name, out: out)
  monkeypatch.setattr(hub, "push", lambda *args, **options: calls.append((args, options)) or "url")
  words = ["card", "--model=r", "--eval=e", "--name=n", f"--out={tmp_path / 'card.md'}"]
  assert cli.main([*words, "--push-to-hub=me/x"]) == 0
  assert calls == ["me/x", ((tmp_path / "card.md", "me/x"), {"private": False})]
