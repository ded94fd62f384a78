"""Headless Chromium on the labeling page, and the page itself in a process of its own."""

import contextlib
import re
import shutil
import subprocess
import sys
import threading

FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-dev-shm-usage",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--force-prefers-reduced-motion",
]


def start(*arguments, cwd):
  """`instructjax label` in a process: (process, address that it printed)."""
  command = [
    sys.executable,
    "-m",
    "instructjax.commands.cli",
    "label",
    "--port=0",
    *map(str, arguments),
  ]
  process = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
  )
  lines, late = [], threading.Timer(60, process.kill)
  late.start()
  try:
    for line in process.stdout:
      lines.append(line)
      if line.startswith("http://"):
        return process, line.strip()
  finally:
    late.cancel()
  process.stdout.close()
  raise RuntimeError(f"exit {process.wait()}: {''.join(lines)}")


@contextlib.contextmanager
def served(*arguments, cwd):
  """The address of a running page, which is stopped afterwards."""
  process, address = start(*arguments, cwd=cwd)
  try:
    yield address
  finally:
    process.terminate()
    process.communicate(timeout=20)


@contextlib.contextmanager
def chromium(folder, width=1280, height=900, *, dark=False, touch=False):
  """A Selenium driver with an empty profile and a window of this size in CSS pixels."""
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which("chromium")
  for flag in [*FLAGS, f"--user-data-dir={folder}", "--window-size=1400,1100"]:
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  service = webdriver.ChromeService(shutil.which("chromedriver"))
  driver = webdriver.Chrome(options, service)
  try:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    if touch:
      driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    yield driver
  finally:
    driver.quit()


def complaints(driver):
  """What the console said that is not about the favicon."""
  return [
    entry["message"]
    for entry in driver.get_log("browser")
    if not re.search(r"favicon", entry["message"])
  ]
