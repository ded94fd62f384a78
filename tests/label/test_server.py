"""The labeling page over HTTP: who gets in, what is sent, and answers that survive a kill of the
server.
"""

import http.client
import json
import re
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from browser import start

from instructjax.commands import cli
from instructjax.errors import UserError
from instructjax.label import connections, guard, server, store
from instructjax.label.tasks import Task


class Client:
  """Plain HTTP to 127.0.0.1, one connection a request."""

  def __init__(self, port):
    self.port = port

  def __call__(self, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    if method == "POST":
      headers = {"Content-Type": "application/json"} | headers
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers, text

  def post(self, name, expect=200, **body):
    status, _, text = self("POST", f"/api/{name}", body)
    assert status == expect, text
    return json.loads(text)


@pytest.fixture
def page(tmp_path):
  """A running page with three tasks and a clock that tests turn: (client, clock, database, start of
  another guard).
  """
  db = store.create(tmp_path / "l.sqlite", "comparison", 1)
  store.add(db, [Task(f"p{i}", ("<b>a</b>", "b")) for i in range(3)])
  clock, running = [0.0], []
  app = server.application(
    db, server.Options("text", frozenset({"ana", "ben"}), 60.0, lambda: clock[0])
  )

  def run(checks):
    listening = server.listen("127.0.0.1", 0)
    web_server = uvicorn.Server(server.web_config(guard.protect(app, checks)))
    thread = threading.Thread(target=web_server.run, kwargs={"sockets": [listening]})
    thread.start()
    running.append((web_server, thread, listening))
    return Client(listening.getsockname()[1])

  yield run(guard.make_guard("127.0.0.1", 0)), clock, db, run
  for web_server, thread, listening in running:
    web_server.should_exit = True
    thread.join()
    listening.close()
  db.close()


RATED = [{"overall": 5, "opinion": True}, {"overall": 2}]
ANSWER = {"ranks": [1, 2], "ratings": RATED, "notes": ["", "n"]}


def test_the_page_may_run_and_load_nothing_but_its_own_files(page):
  client, *_ = page
  script = "text/javascript"
  scripts = [(path, script) for path in ("/page.js", "/rate.js", "/rank.js")]
  for path, kind in [("/", "text/html"), ("/page.css", "text/css"), *scripts]:
    status, headers, text = client("GET", path)
    assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
    policy = dict(
      part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
    never = (b"innerHTML", b"insertAdjacent", b"document.write", b"eval(", b"https://", b"style=")
    assert not [word for word in never if word in text]
  assert client("GET", "/label")[0] == 404
  assert client("GET", "/../store.py")[0] == 404
  assert client("GET", "/api/next")[0] == 405


def test_a_labeler_answers_skips_and_is_done(page):
  client, _, db, _ = page
  assert client.post("start", labeler="ana") == {
    "kind": "comparison",
    "instructions": "text",
    "labeler": "ana",
  }
  first = client.post("next", labeler="ana")
  task = first["task"]["number"]
  assert sorted(first["task"]["completions"]) == ["<b>a</b>", "b"] and first["draft"] == {}
  assert client.post("draft", labeler="ana", task=task, draft={"step": 1}, seq=1) == {"saved": True}
  again = client.post("next", labeler="ana")
  assert (again["task"], again["draft"], again["seq"]) == (first["task"], {"step": 1}, 1)
  assert client.post("answer", labeler="ana", task=task, answer=ANSWER) == {"new": True}
  assert client.post("answer", labeler="ana", task=task, answer=ANSWER) == {"new": False}
  assert (
    "another way"
    in client.post("answer", 409, labeler="ana", task=task, answer=ANSWER | {"ranks": [1, 1]})[
      "error"
    ]
  )
  client.post(
    "skip",
    labeler="ana",
    task=client.post("next", labeler="ana")["task"]["number"],
    reason="too long",
  )
  client.post(
    "answer",
    labeler="ana",
    task=client.post("next", labeler="ana")["task"]["number"],
    answer=ANSWER,
  )
  end = client.post("next", labeler="ana")
  assert (end["task"], end["waiting"]) == (None, False)
  assert end["progress"] == {
    "tasks": 3,
    "wanted": 3,
    "answers": 2,
    "complete": 2,
    "mine": 2,
    "skipped": 1,
  }
  assert len(store.answers(db)) == 3


def test_a_lease_keeps_others_away_and_ends(page):
  client, clock, *_ = page
  client.post(
    "answer",
    labeler="ana",
    task=client.post("next", labeler="ana")["task"]["number"],
    answer=ANSWER,
  )
  client.post(
    "answer",
    labeler="ana",
    task=client.post("next", labeler="ana")["task"]["number"],
    answer=ANSWER,
  )
  last = client.post("next", labeler="ana")["task"]["number"]
  waiting = client.post("next", labeler="ben")
  assert (waiting["task"], waiting["waiting"]) == (None, True)
  clock[0] = 61.0
  assert client.post("next", labeler="ben")["task"]["number"] == last
  assert (
    "someone else" in client.post("answer", 409, labeler="ana", task=last, answer=ANSWER)["error"]
  )


@pytest.mark.parametrize(
  ("name", "body", "what"),
  [
    ("next", {}, "labeler: 1 to 64"),
    ("next", {"labeler": "a b"}, "labeler: 1 to 64"),
    ("next", {"labeler": 3}, "labeler"),
    ("next", {"labeler": "eve"}, "'eve' is not on the list"),
    ("draft", {"labeler": "ana", "task": 1}, "seq: a whole number"),
    ("draft", {"labeler": "ana", "task": "1", "seq": 1}, "task: a whole number"),
    ("draft", {"labeler": "ana", "task": 1, "seq": 1, "draft": []}, "draft: an object"),
    ("skip", {"labeler": "ana", "task": 1, "reason": "x" * 501}, "reason: a text of at most 500"),
    ("answer", {"labeler": "ana", "task": 2**64, "answer": ANSWER}, "task: a whole number"),
  ],
)
def test_bad_calls_are_told_what_is_wrong(page, name, body, what):
  assert what in page[0].post(name, 400, **body)["error"]


def test_other_sites_and_names_are_refused(page):
  client, *_ = page
  call = lambda **headers: client("POST", "/api/next", {"labeler": "ana"}, **headers)[0]
  own = f"127.0.0.1:{client.port}"
  assert client("GET", "/", Host="evil.example")[0] == 421  # DNS rebinding
  assert client("GET", "/", Host=f"192.0.2.1:{client.port}")[0] == 421
  assert client("GET", "/", Host=f"localhost:{client.port}")[0] == 200
  assert client("GET", "/", Host="[::1]:80")[0] == 200
  assert call(Origin=f"http://{own}", Sec_Fetch_Site="same-origin") == 200
  assert (
    call(Origin="http://evil.example")
    == call(Origin="null")
    == call(Sec_Fetch_Site="cross-site")
    == 403
  )
  assert call(Origin=f"http://localhost:{client.port}") == 403
  assert (
    call(Content_Type="text/plain") == call(Content_Type="application/x-www-form-urlencoded") == 415
  )
  assert client("POST", "/api/next", b"{" * 100_000)[0] == 400
  for content in (
    b"[1]",
    b'{"x": "\\ud800"}',
    b'{"labeler": "ana", "x": NaN}',
    b'{"labeler": "ana", "x": 1e999}',
    b"\xff",
  ):
    assert client("POST", "/api/next", content)[0] == 400
  assert client("POST", "/api/next", b"x", Content_Length=str(guard.MAX_BYTES + 1))[0] == 413


def test_a_body_without_a_length_is_cut_off_too(page):
  client, *_ = page
  connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
  parts = (b" " * 100_000 for _ in range(21))
  connection.request(
    "POST", "/api/next", parts, {"Content-Type": "application/json"}, encode_chunked=True
  )
  response = connection.getresponse()
  assert response.status == 400 and b"a request may have 2000000 bytes" in response.read()
  connection.close()


def test_opened_wider_everything_needs_the_token(page):
  _, _, _, run = page
  checks = guard.make_guard("0.0.0.0", 0, ("label.example",))
  assert len(checks.token) >= 32 and checks.token != guard.make_guard("0.0.0.0", 0).token
  client = run(checks)
  for path in ("/", "/page.js", "/page.css", "/?token=", "/?token=wrong", "/?token=%C3%A9"):
    assert client("GET", path)[0] == 401
  assert client("POST", "/api/next", {"labeler": "ana"})[0] == 401
  assert (
    client("POST", f"/api/next?token={checks.token}", {"labeler": "ana"})[0] == 401
  )  # the link is for the page only
  status, headers, text = client("GET", f"/?token={checks.token}")
  cookie, *parts = headers["Set-Cookie"].split("; ")
  assert status == 200 and b"refresh" in text and checks.token.encode() not in text
  assert {part.lower() for part in parts} >= {"httponly", "samesite=strict", "path=/"}
  assert client("GET", "/", Cookie=cookie)[0] == 200
  assert client("POST", "/api/next", {"labeler": "ana"}, Cookie=cookie)[0] == 200
  assert client("GET", "/", Cookie=cookie + "x")[0] == 401
  assert client("GET", "/", Cookie=cookie, Host="label.example")[0] == 200
  assert client("GET", "/", Cookie=cookie, Host="evil.example")[0] == 421


@pytest.mark.parametrize(
  ("host", "needs"),
  [
    ("127.0.0.1", False),
    ("localhost", False),
    ("::1", False),
    ("0.0.0.0", True),
    ("192.0.2.7", True),
  ],
)
def test_only_this_machine_needs_no_token(host, needs):
  assert bool(guard.make_guard(host, 1).token) == needs


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path):
  """kill -9 of `instructjax label` itself after the answer; the next start has it, and the draft of
  the next prompt.
  """
  rows = [{"prompt": f"p{i}", "completions": ["a", "b"]} for i in range(2)]
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  process, address = start("--tasks=t.jsonl", "--kind=comparison", "--db=l.sqlite", cwd=tmp_path)
  client = Client(int(address.rstrip("/").rpartition(":")[2]))
  client.post(
    "answer",
    labeler="ana",
    task=client.post("next", labeler="ana")["task"]["number"],
    answer=ANSWER,
  )
  second = client.post("next", labeler="ana")["task"]
  client.post("draft", labeler="ana", task=second["number"], draft={"step": 2}, seq=1)
  process.kill()
  process.communicate()
  process, address = start("--db=l.sqlite", cwd=tmp_path)
  client = Client(int(address.rstrip("/").rpartition(":")[2]))
  again = client.post("next", labeler="ana")
  assert (again["task"], again["draft"], again["progress"]["mine"]) == (second, {"step": 2}, 1)
  process.terminate()
  process.communicate()
  assert process.returncode in (-15, 143)


def test_the_pictures_of_the_walk_through_are_small():
  folder = Path(__file__).parent.parent.parent / "docs"
  pictures = re.findall(r"[\w]+\.png", (folder / "labeling.md").read_text())
  assert len(pictures) == 2 and all(
    0 < (folder / name).stat().st_size < 200_000 for name in pictures
  )


def test_a_taken_port_and_missing_files_are_user_errors(tmp_path, capsys):
  with (
    server.listen("127.0.0.1", 0) as taken,
    pytest.raises(UserError, match="cannot listen there"),
  ):
    server.listen("127.0.0.1", taken.getsockname()[1])
  db = tmp_path / "l.sqlite"
  for options, what in [
    ((), "no such file; give --kind"),
    (("--kind=comparison",), "no prompts; give --tasks"),
    (("--kind=comparison", f"--tasks={tmp_path / 'none'}"), "no such file"),
    (("--kind=comparison", "--instructions=none.md"), "cannot be read as UTF-8"),
    (("export", "--out=x"), "no answers yet"),
    (("agreement",), "two labelers"),
  ]:
    head, *rest = options or [""]
    command = (
      ["label", head, f"--db={db}", *rest]
      if head in ("export", "agreement")
      else ["label", f"--db={db}", *options]
    )
    assert cli.main(command) == 2
    assert what in capsys.readouterr().err


def test_a_host_header_is_a_name_and_nothing_more(page):
  client, *_ = page
  for host in ("[::1].evil.example", "[::1]evil", "localhost:80@evil", "localhost:x", "[", ""):
    assert client("GET", "/", Host=host)[0] == 421, host
  assert client("GET", "/", Host="LOCALHOST.:80")[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_name_is_known_in_any_case(page, host):
  _, _, _, run = page
  checks = guard.make_guard(host, 0, ("MyBox",))
  client = run(checks)
  expected = 401 if checks.token else 200
  for name in ("MyBox", "mybox", "MYBOX:80"):
    assert client("GET", "/", Host=name)[0] == expected


def test_the_page_takes_no_answer_without_ratings(page):
  client, *_ = page
  task = client.post("next", labeler="ana")["task"]["number"]
  for ratings in ([{}, {}], [RATED[0], {}]):
    answer = ANSWER | {"ratings": ratings}
    error = client.post("answer", 400, labeler="ana", task=task, answer=answer)["error"]
    assert "overall: an integer from 1 (worst) to 7 (best)" in error
  assert client.post("answer", labeler="ana", task=task, answer=ANSWER) == {"new": True}


def test_connections_that_say_nothing_lock_nobody_out(page, monkeypatch):
  client, *_ = page
  monkeypatch.setattr(connections, "MOST", 20)
  silent = []
  try:
    for i in range(50):
      silent.append(socket.create_connection(("127.0.0.1", client.port), timeout=20))
      silent[-1].sendall((b"", b"POST /api/next HTTP/1.1\r\n")[i % 2])
    assert client("GET", "/")[0] == 200
    # The oldest have made room, which they notice as the end of the connection.
    assert _is_closed(silent[0])
  finally:
    for connection in silent:
      connection.close()


def test_a_request_that_does_not_end_is_cut_off(page, monkeypatch):
  monkeypatch.setattr(connections, "PATIENCE", 0.2)
  client, *_ = page
  head = b"POST /api/next HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
  for sent in (b"", b"POST", head + b"Content-Length: 5\r\n\r\nx"):
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
      connection.sendall(sent)
      assert _is_closed(connection)
  assert client("GET", "/")[0] == 200


def _is_closed(connection) -> bool:
  """Waits until the other side has ended a connection."""
  try:
    return connection.recv(1) == b""
  except ConnectionResetError:
    return True
