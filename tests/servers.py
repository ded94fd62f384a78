"""A server on this machine, for what asks one over HTTP."""

import http.server
import json
import threading
import time

import pytest


def lengths(path, body, number):
  return 200, {}, {"scores": [len(text) for text in body["responses"]]}


@pytest.fixture
def server():
  """A server in a thread; `answer(path, body, number)` gives (status, headers, body or bytes) of
  request `number`.
  """

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      with found.lock:
        number = len(found.asked)
        found.asked.append((self.path, body, dict(self.headers), time.monotonic()))
        found.live += 1
        found.most = max(found.most, found.live)
      status, headers, reply = found.answer(self.path, body, number)
      with found.lock:
        found.live -= 1
      reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
      try:
        self.send_response(status)
        for name, value in headers.items():
          self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
      except (BrokenPipeError, ConnectionResetError):  # the client had no more patience
        pass

    def log_message(self, *args):
      pass

  found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  found.asked, found.live, found.most, found.lock = [], 0, 0, threading.Lock()
  found.answer = lengths
  found.url = f"http://127.0.0.1:{found.server_address[1]}/score"
  thread = threading.Thread(target=found.serve_forever, args=(0.01,))
  thread.start()
  yield found
  found.shutdown()
  thread.join()
  found.server_close()
