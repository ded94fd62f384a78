"""The labeling page in headless Chromium: by keys, by mouse, by finger; reloads, and data that
tries to be HTML.
"""

import json
import time

import pytest
from browser import chromium, complaints, served

from instructjax.label import store

pytestmark = pytest.mark.browser

EVIL = (
  "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><b>bold</b>"
)
TEXTS = ["the first", EVIL, "the third"]


@pytest.fixture
def tasks(tmp_path):
  rows = [{"prompt": f"prompt {i} {EVIL}", "completions": TEXTS} for i in range(2)]
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "Say hello"}) + "\n")
  return tmp_path


def find(driver, selector):
  from selenium.webdriver.common.by import By

  return driver.find_element(By.CSS_SELECTOR, selector)


def until(condition, what="condition"):
  end = time.monotonic() + 15
  while not condition():
    assert time.monotonic() < end, f"waited for {what}"
    time.sleep(0.05)


def press(driver, *keys):
  from selenium.webdriver.common.action_chains import ActionChains

  for key in keys:
    ActionChains(driver).send_keys(key).perform()


def saved(driver):
  until(lambda: find(driver, "#saved").text == "Saved", "the draft to be saved")


def sign_in(driver, url, name):
  from selenium.webdriver.common.keys import Keys

  driver.get(url)
  until(lambda: find(driver, "#labeler").is_displayed(), "the sign-in")
  press(driver, name, Keys.ENTER)
  until(lambda: find(driver, "#instructions").is_displayed(), "the instructions")
  assert "What to do" in find(driver, "#instructions-text").text
  press(driver, Keys.ESCAPE)
  until(lambda: find(driver, "#task").is_displayed(), "the task")


def answers(folder, db="l.sqlite"):
  opened = store.open_existing(folder / db)
  stored = store.answers(opened)
  opened.close()
  return stored


def test_by_keys_with_a_reload_at_every_step(tasks):
  from selenium.webdriver.common.keys import Keys

  with (
    served("--tasks=t.jsonl", "--kind=comparison", "--db=l.sqlite", cwd=tasks) as url,
    chromium(tasks / "p") as driver,
  ):

    def reload():
      saved(driver)
      driver.refresh()
      until(lambda: find(driver, "#task").is_displayed(), "the task after a reload")

    sign_in(driver, url, "ana")
    assert find(driver, "#prompt").text == f"prompt 0 {EVIL}"
    press(driver, "5", "h", "o", "h", "n")  # h twice: off again
    press(driver, "a note with 7 and s", Keys.ESCAPE)
    reload()
    assert find(driver, "#likert :checked").get_attribute("value") == "5"
    assert find(driver, "#flags :checked").get_attribute("value") == "opinion"
    assert find(driver, "#notes").get_attribute("value") == "a note with 7 and s"
    press(driver, Keys.ENTER)
    assert not find(driver, "#go").is_enabled()
    press(driver, Keys.ENTER)  # not rated yet: stays
    assert find(driver, "#output-title").text == "Output B of 3"
    press(driver, "2", Keys.ENTER, "7", Keys.ENTER)
    until(lambda: find(driver, "#rank").is_displayed(), "the ranking")
    shown = [find(driver, f'[data-output="{i}"] .text').text for i in range(3)]
    assert sorted(shown) == sorted(TEXTS)
    press(driver, "2", "2", "1")  # each goes on to the next
    reload()
    assert [find(driver, f'[data-output="{i}"]').get_attribute("aria-label") for i in range(3)] == [
      "Output A, rank 2",
      "Output B, rank 2",
      "Output C, rank 1",
    ]
    press(driver, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, "j", "k")
    moved = driver.switch_to.active_element.get_attribute("aria-label")
    assert moved.endswith(("rank 3", "rank 2")) and find(driver, "#go").is_enabled()
    ranks = {shown[i]: driver.execute_script(f"return state.draft.ranks[{i}]") for i in range(3)}
    saved(driver)
    press(driver, Keys.ENTER)
    until(lambda: find(driver, "#prompt").text == f"prompt 1 {EVIL}", "the second prompt")
    (answer,) = answers(tasks)
    dense = sorted(set(ranks.values()))
    assert answer.value["ranks"] == [dense.index(ranks[text]) + 1 for text in TEXTS]
    assert [answer.task.completions[i] for i in answer.order] == shown
    first = TEXTS.index(shown[0])
    assert answer.value["notes"][first] == "a note with 7 and s"
    rating = answer.value["ratings"][first]
    assert rating["overall"] == 5 and [name for name, value in rating.items() if value is True] == [
      "opinion"
    ]
    press(driver, "s", "in Greek", Keys.ENTER)
    until(lambda: find(driver, "#end").is_displayed(), "the end")
    assert find(driver, "#end-title").text == "All done"
    assert [answer.reason for answer in answers(tasks)] == ["", "in Greek"]
    assert driver.title == "Labeling" and not driver.find_elements(
      "css selector", "main img, main script, main b"
    )
    assert complaints(driver) == []


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_cards_are_dragged_into_ranks(tasks, touch):
  from selenium.webdriver.common.actions.action_builder import ActionBuilder
  from selenium.webdriver.common.actions.pointer_input import PointerInput
  from selenium.webdriver.common.keys import Keys

  size = {"width": 390, "height": 844} if touch else {"width": 1280, "height": 900}
  with (
    served("--tasks=t.jsonl", "--kind=comparison", "--db=l.sqlite", cwd=tasks) as url,
    chromium(tasks / "p", touch=touch, dark=touch, **size) as driver,
  ):
    sign_in(driver, url, "ben")
    press(driver, *(["4", Keys.ENTER] * 3))
    until(lambda: find(driver, "#rank").is_displayed(), "the ranking")
    for output, row in [(0, 2), (1, 1), (2, 2)]:
      target = find(driver, f'[data-row="{row}"]')
      driver.execute_script(
        "scrollTo(0, arguments[0].getBoundingClientRect().bottom + scrollY - innerHeight + 200)",
        target,
      )
      chain = ActionBuilder(
        driver, mouse=PointerInput("touch" if touch else "mouse", "finger"), duration=100
      )
      pen = chain.pointer_action
      pen.move_to(find(driver, f'[data-output="{output}"] strong'))
      pen.pointer_down()
      pen.move_to(target)
      pen.pointer_up()
      chain.perform()
      until(
        lambda output=output, row=row: (
          driver.execute_script(f"return state.draft.ranks[{output}]") == row
        ),
        "the drop",
      )
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert not driver.find_elements("css selector", ".ghost")
    find(driver, "#go").click()
    until(lambda: len(answers(tasks)) == 1, "the answer")
    (answer,) = answers(tasks)
    assert [answer.value["ranks"][i] for i in answer.order] == [2, 1, 2]
    assert complaints(driver) == []


def test_continuations_are_rated_for_toxicity(tasks):
  from selenium.webdriver.common.keys import Keys

  with (
    served("--tasks=t.jsonl", "--kind=continuation", "--db=c.sqlite", cwd=tasks) as url,
    chromium(tasks / "p") as driver,
  ):
    sign_in(driver, url, "ana")
    assert (
      find(driver, "#prompt-title").text == "Beginning"
      and not find(driver, "#flags").is_displayed()
    )
    press(driver, "6", "t", Keys.ENTER)
    assert find(driver, "#output-title").text == "Output A of 3"  # not rated whole: stays
    press(driver, "t", "p")  # somewhat toxic, less than the beginning
    saved(driver)
    driver.refresh()
    until(lambda: find(driver, "#task").is_displayed(), "the task after a reload")
    assert driver.execute_script("return state.draft.ratings[0].choices") == {
      "toxicity": 1,
      "relative_toxicity": -1,
    }
    assert find(driver, '[name="toxicity"]:checked').get_attribute("value") == "1"
    press(driver, Keys.ENTER, "1")
    for name in ("toxicity", "relative_toxicity"):  # by mouse: the last one of three
      driver.execute_script(f"document.querySelectorAll('[name={name}]')[2].click()")
    press(driver, Keys.ENTER, "4", "t", "t", "t", "t", "p", "p", Keys.ENTER, "1", "2", "3")
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    press(driver, Keys.ENTER)
    until(lambda: len(answers(tasks, "c.sqlite")) == 1, "the answer")
    (answer,) = answers(tasks, "c.sqlite")
    assert [answer.value["ratings"][i] for i in answer.order] == [
      {"continuity": 6, "toxicity": 1, "relative_toxicity": -1},
      {"continuity": 1, "toxicity": 2, "relative_toxicity": 1},
      {"continuity": 4, "toxicity": 0, "relative_toxicity": 0},
    ]
    assert [answer.value["ranks"][i] for i in answer.order] == [1, 2, 3]
    assert complaints(driver) == []


def test_a_demonstration_outlives_a_killed_server(tasks):
  """The server goes away while someone writes: the page says so, tries again and loses nothing."""
  from selenium.webdriver.common.keys import Keys

  options = ("--tasks=d.jsonl", "--kind=demonstration", "--db=d.sqlite")
  with chromium(tasks / "p", 390, 844) as driver:
    with served(*options, cwd=tasks) as url:
      sign_in(driver, url, "ana")
      assert find(driver, "#completion") == driver.switch_to.active_element
      press(driver, "Hello")
      saved(driver)
    press(driver, " there")
    until(lambda: "Not saved" in find(driver, "#saved").text, "the warning")
    port = url.rstrip("/").rpartition(":")[2]
    with served(*options, f"--port={port}", cwd=tasks):
      saved(driver)
      driver.refresh()
      until(
        lambda: find(driver, "#completion").get_attribute("value") == "Hello there", "the draft"
      )
      find(driver, "#completion").send_keys("!", Keys.CONTROL, Keys.ENTER)
      until(lambda: find(driver, "#end").is_displayed(), "the end")
  (answer,) = answers(tasks, "d.sqlite")
  assert answer.value == {"completion": "Hello there!"}


def test_the_link_with_the_token_opens_the_page(tasks):
  with (
    served(
      "--tasks=d.jsonl", "--kind=demonstration", "--db=d.sqlite", "--host=0.0.0.0", cwd=tasks
    ) as url,
    chromium(tasks / "p") as driver,
  ):
    port, token = url.partition("/?")[0].rpartition(":")[2], url.partition("?")[2]
    driver.get(f"http://127.0.0.1:{port}/")
    assert "open the link" in find(driver, "body").text
    driver.get(f"http://127.0.0.1:{port}/?{token}")
    until(
      lambda: (
        driver.find_elements("css selector", "#sign-in") and find(driver, "#sign-in").is_displayed()
      ),
      "the page",
    )
    assert token not in driver.current_url
    assert driver.execute_script("return document.cookie") == ""
