"""The page of `gdpo-sr app` in a real browser, and as an API."""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# The app runs in a process of its own: here gradio's import would be CPU seconds for nothing.
if importlib.util.find_spec("gradio") is None:
    pytest.skip("the package gradio is not installed (extra `app`)", allow_module_level=True)
pytest.importorskip("selenium", reason="the package selenium is not installed (extra `dev`)")

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.tasks.stages.test_report_browser import (  # noqa: F401 (fixtures)
    BROWSER,
    DRIVER,
    _pixels,
    _requests,
    _screen,
    browser,
    driver,
)

WAIT_S = 120
pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app keeps its temporary files."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, scratch: Path, root: Path) -> Iterator[str]:
    """The address of the app, started as a person does."""
    folder = tmp_path_factory.mktemp("here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tasks", "app", "--port", str(port), "--device", "cpu"],
        cwd=folder,
        env={"PATH": "", "PYTHONPATH": str(root), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as app:
        assert app.stdout is not None
        yield app.stdout.readline().split()[0]
        app.send_signal(signal.SIGTERM)
        assert app.wait(timeout=WAIT_S) == 130
    assert [path for path in scratch.rglob("*") if path.is_file()] == []  # uploads, results


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two small photographs, one with a maker in its EXIF."""
    exif = Image.Exif()
    exif[271] = "a maker"
    files = [tmp_path / "one.jpg", tmp_path / "two.jpg"]
    for seed, path in enumerate(files):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((48, 36), Image.Resampling.BICUBIC)
        smooth.save(path, exif=exif)
    return files


def until(browser: Any, found: Callable[[Any], Any]) -> Any:  # noqa: F811
    return WebDriverWait(browser, WAIT_S, 0.2).until(found)


def open_page(browser: Any, page: str) -> None:  # noqa: F811
    browser.get(page)
    until(browser, lambda it: it.find_elements(By.ID, "go"))


def upload(browser: Any, files: list[Path]) -> None:  # noqa: F811
    field = browser.find_element(By.CSS_SELECTOR, "input[type=file]")
    field.send_keys("\n".join(map(str, files)))
    for file in files:
        until(browser, lambda it, file=file: file.stem in it.find_element(By.TAG_NAME, "body").text)


def candidates(browser: Any, count: int) -> None:  # noqa: F811
    field = browser.find_element(By.CSS_SELECTOR, "input[type=number][aria-label*='Candidates']")
    field.send_keys(Keys.CONTROL + "a")  # alone: the key stays down to the end of a call
    field.send_keys(str(count) + Keys.TAB)


def images(browser: Any) -> list[tuple[str, int, int]]:  # noqa: F811
    """(file, width, height) of the two pictures below the slider."""
    script = (
        "return [...document.querySelectorAll('#compare img')].map("
        "it => [decodeURI(it.src), it.naturalWidth, it.naturalHeight])"
    )
    return [
        (Path(src).name, width, height) for src, width, height in browser.execute_script(script)
    ]


def captions(browser: Any) -> list[str]:  # noqa: F811
    shown = browser.find_elements(By.CSS_SELECTOR, "#candidates .caption-label")
    return [one.get_property("textContent").strip() for one in shown]


def toast(browser: Any) -> str:  # noqa: F811
    """The text of the message that comes up."""
    script = "return document.querySelector('.toast-body')?.innerText"
    return str(until(browser, lambda it: it.execute_script(script)))


def complaints(browser: Any) -> list[str]:  # noqa: F811
    return [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]


def test_from_uploads_to_a_chosen_candidate(browser: Any, page: str, photos: list[Path]) -> None:  # noqa: F811
    open_page(browser, page)
    upload(browser, photos)
    candidates(browser, 2)
    browser.find_element(By.ID, "go").click()
    links = "a[download$='.png'], a[download$='.json']"
    until(browser, lambda it: len(it.find_elements(By.CSS_SELECTOR, links)) >= 3)
    until(browser, lambda it: all(width for _, width, _ in images(it)) and len(captions(it)) == 4)

    # The better of two seeds is marked and shown, beside the enlargement of the same size.
    told = [re.fullmatch(r"([\d.]+) (best )?seed (\d) (\S+)", one) for one in captions(browser)]
    assert [(one[3], one[4]) for one in told if one] == [
        (seed, name) for name in ("one.jpg", "two.jpg") for seed in ("0", "1")
    ]
    marked = [bool(one[2]) for one in told if one]
    values = [float(one[1]) for one in told if one]
    assert marked[0] != marked[1] and values[marked[:2].index(True)] == min(values[:2])
    best = marked.index(True)
    assert images(browser) == [("one_bicubic.png", 192, 144), (f"one_x4_seed{best}.png", 192, 144)]
    names = {
        link.get_attribute("download") for link in browser.find_elements(By.CSS_SELECTOR, links)
    }
    assert {f"one_x4_seed{best}.png", "how-they-were-made.json"} <= names
    assert any(name.startswith("two_x4_seed") for name in names)

    # Slide: more of the enlargement, less of the result.
    before = _pixels(browser)
    handle = browser.find_element(By.CSS_SELECTOR, "#compare .inner")
    ActionChains(browser).move_to_element(handle).click_and_hold().move_by_offset(
        150, 0
    ).release().perform()
    cut = browser.execute_script(
        "return getComputedStyle(document.querySelectorAll('#compare img')[1]).clipPath"
    )
    assert 55 < float(cut.removeprefix("inset(").split()[3].rstrip("%)")) < 95
    assert np.abs(_pixels(browser) - before).max() > 20

    # Choose the other candidate.
    browser.find_elements(By.CSS_SELECTOR, "#candidates button.thumbnail-item")[1 - best].click()
    until(browser, lambda it: images(it)[1][0] == f"one_x4_seed{1 - best}.png")
    assert f"seed {1 - best}" in browser.find_element(By.ID, "compare").text

    asked = [url for url in _requests(browser) if not url.startswith(("data:", "blob:"))]
    assert asked and all(url.startswith(page) for url in asked)
    assert complaints(browser) == []


def test_it_fits_a_phone(browser: Any, page: str) -> None:  # noqa: F811
    _screen(browser, 390, 844)
    open_page(browser, page)
    size = "const it = document.documentElement; return [it.scrollWidth, it.clientWidth]"
    assert browser.execute_script(size) == [390, 390]
    for name in ("go", "cancel", "compare", "candidates"):
        rect = browser.find_element(By.ID, name).rect
        assert rect["x"] >= 0 and rect["x"] + rect["width"] <= 390
    assert complaints(browser) == []


def test_a_bad_upload_is_said_in_one_line_and_as_text(
    browser: Any,  # noqa: F811
    page: str,
    tmp_path: Path,
) -> None:
    bad = tmp_path / "a & b.png"
    bad.write_text("no picture")
    open_page(browser, page)
    upload(browser, [bad])
    browser.find_element(By.ID, "go").click()
    said = toast(browser)
    assert "a & b.png: not a readable photograph (not an image of a known kind)" in said
    assert "/" not in said  # no path of the server


def test_cancelling_an_example(browser: Any, page: str) -> None:  # noqa: F811
    open_page(browser, page)
    (example,) = [
        one for one in browser.find_elements(By.TAG_NAME, "button") if one.text == "kodim07"
    ]
    example.click()
    until(browser, lambda it: it.find_elements(By.CSS_SELECTOR, "a[href*='kodim07']"))
    candidates(browser, 8)
    browser.find_element(By.ID, "go").click()
    until(browser, lambda it: len(captions(it)) >= 1)
    browser.find_element(By.ID, "cancel").click()
    assert "Cancelled" in toast(browser)
    assert 1 <= len(captions(browser)) < 8
    assert complaints(browser) == []


def test_the_api_gives_files_and_records(page: str, photos: list[Path], tmp_path: Path) -> None:
    script = """
import json, sys
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False, download_files=sys.argv[2])
print(json.dumps(client.predict(
    photos=[handle_file(sys.argv[3])], count=2, scale=2, t_add=100, api_name="/upscale")))
try:
    client.predict(photos=[], api_name="/upscale")
except Exception as error:
    print(error)
"""
    folder = tmp_path / "down"
    folder.mkdir()
    # In a process of its own: here warnings are errors, and a connection elsewhere fails the test.
    done = subprocess.run(
        [sys.executable, "-c", script, page, str(folder), str(photos[0])],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    first, error = done.stdout.splitlines()
    made, enlarged, records = json.loads(first)
    assert [one["seed"] for one in records] == [0, 1] and records[0]["t_add"] == 100
    with Image.open(made[0]["image"]) as result:
        assert result.size == (96, 72) and result.getexif()[271] == "a maker"
    assert Path(enlarged[0]["image"]).is_file()
    assert "no photograph; upload one" in error


def test_a_port_that_is_taken_is_said_in_one_line(page: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks", "app", "--port", page.rstrip("/").rpartition(":")[2]],
        cwd=tmp_path,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gdpo-sr: ") and done.stderr.count("\n") == 1
