"""The report in a real browser: Debian's chromium, driven by selenium; opened as files, and once
behind a prefix.

The names in it try to break out of the page (tests/tasks/fabricated.py). `.ci/run` installs browser
and driver.
"""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("selenium", reason="the package selenium is not installed (extra `dev`)")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.expected_conditions import alert_is_present

from gdpo.hooks import Hooks
from tasks.stages import report
from tests import s3
from tests.tasks import fabricated

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PAGES = (
    "index",
    "pages/benchmark-sample",
    "pages/tables",
    "pages/training",
    "pages/evidence",
    "pages/data",
    "pages/provenance",
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """reports/ of a made-up run whose names are hostile."""
    from tasks.params import load

    folder = tmp_path_factory.mktemp("site")
    fabricated.outputs(folder)
    fabricated.promote(folder, gain=1.0)
    report.run(load(root / "tests/params.yaml"), folder, Hooks())
    return folder / "reports"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield found
    found.quit()


@pytest.fixture
def browser(driver: Any) -> Any:
    """The browser at desktop size in light mode, with nothing in its logs."""
    _screen(driver, 1280, 800)
    driver.get("data:text/html,")
    driver.get_log("browser"), driver.get_log("performance")
    return driver


def _screen(browser: Any, width: int, height: int, *, dark: bool = False) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def _open(browser: Any, site: Path, page: str = "index") -> None:
    browser.get((site / f"{page}.html").as_uri())


def _requests(browser: Any) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def _cut(browser: Any) -> float:
    """Where the left picture ends, as the browser draws it: percent of the frame's width."""
    clip = "return getComputedStyle(document.getElementById('left-image')).clipPath"
    frame = browser.find_element(By.ID, "frame")
    hidden = browser.execute_script(clip).removeprefix("inset(").split()[1]
    return 100 - (
        float(hidden[:-1])
        if hidden.endswith("%")
        else 100 * float(hidden[:-2]) / frame.rect["width"]
    )


def _pixels(browser: Any) -> np.ndarray:
    return np.asarray(
        Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB"), dtype=np.float64
    )


def test_the_slider_follows_the_mouse(browser: Any, site: Path) -> None:
    _open(browser, site)
    divider = browser.find_element(By.ID, "divider")
    before, width = _pixels(browser), divider.rect["width"]
    assert _cut(browser) == pytest.approx(50, abs=1)
    ActionChains(browser).move_to_element(divider).click_and_hold().move_by_offset(
        int(0.3 * width), 0
    ).release().perform()
    assert _cut(browser) == pytest.approx(80, abs=4)
    assert np.abs(_pixels(browser) - before).max() > 50  # another part of the pictures is seen


def test_the_slider_follows_the_keys_and_says_where_it_is(browser: Any, site: Path) -> None:
    _open(browser, site)
    divider = browser.find_element(By.ID, "divider")
    assert divider.aria_role == "slider" and divider.accessible_name
    divider.send_keys(Keys.ARROW_RIGHT * 5)
    assert _cut(browser) == pytest.approx(55, abs=0.5)
    assert divider.get_attribute("aria-valuetext") == "55 % Bicubic"
    divider.send_keys(Keys.HOME)
    assert _cut(browser) == pytest.approx(0, abs=0.5)


def test_views_and_images_are_chosen_by_keyboard_and_hostile_names_stay_text(
    browser: Any, site: Path
) -> None:
    _open(browser, site)
    browser.find_element(By.ID, "left").send_keys("Low")
    assert "/lr.webp" in browser.find_element(By.ID, "left-image").get_attribute("src")
    for index, name in enumerate(fabricated.NAMES):
        button = browser.find_elements(By.CSS_SELECTOR, ".thumbs button")[index]
        button.send_keys(Keys.ENTER)
        assert (
            button.get_attribute("aria-pressed") == "true" and button.get_attribute("title") == name
        )
        assert browser.find_element(By.ID, "image-name").get_property("textContent") == name
        picture = browser.find_element(By.ID, "right-image")
        assert picture.get_attribute(
            "alt"
        ) == f"{name}, GDPO-SR" and f"/{index:03d}-image/gdpo.webp" in picture.get_attribute("src")
    assert (
        browser.execute_script(
            "return document.querySelectorAll('img[src=x], .thumbs script, h3 script').length"
        )
        == 0
    )


def test_tables_sort_by_mouse_and_by_keyboard(browser: Any, site: Path) -> None:
    _open(browser, site, "pages/benchmark-sample")
    table = browser.find_element(By.CSS_SELECTOR, "#differences table")
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[2]
    order = (
        "return [...arguments[0].tBodies[0].rows].map(row => Number(row.cells[2].dataset.value))"
    )
    unsorted = browser.execute_script(order, table)
    assert unsorted not in (sorted(unsorted), sorted(unsorted, reverse=True))
    button = head.find_element(By.TAG_NAME, "button")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button
    )
    button.click()
    assert (
        browser.execute_script(order, table) == sorted(unsorted)
        and head.get_attribute("aria-sort") == "ascending"
    )
    button.send_keys(Keys.SPACE)
    assert browser.execute_script(order, table) == sorted(unsorted, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    table.find_elements(By.CSS_SELECTOR, "thead button")[0].send_keys(Keys.ENTER)  # texts sort, too
    names = [row.text for row in table.find_elements(By.CSS_SELECTOR, "tbody th")]
    assert names == sorted(names, key=str.lower) and head.get_attribute("aria-sort") is None


def test_a_cell_without_a_measurement_sorts_last_both_ways(browser: Any, site: Path) -> None:
    _open(browser, site, "pages/tables")
    table = browser.find_element(By.CSS_SELECTOR, "#table-1 table")
    button = table.find_elements(By.CSS_SELECTOR, "thead button")[4]
    order = (
        "return [...arguments[0].tBodies[0].rows].map(row => "
        "Number(row.cells[4].dataset.value ?? NaN))"
    )
    for sign in (1, -1):
        button.send_keys(Keys.ENTER)
        values = np.array(
            [np.nan if found is None else found for found in browser.execute_script(order, table)]
        )
        count = int(np.isfinite(values).sum())
        assert 0 < count < len(values) and np.isfinite(values[:count]).all()
        assert (np.diff(sign * values[:count]) >= 0).all()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_everything_and_asks_for_nothing_else(
    browser: Any, site: Path, page: str
) -> None:
    _open(browser, site, page)
    broken = browser.execute_async_script(
        """const [done] = arguments, pictures = [...document.images];
        pictures.forEach((picture) => { picture.loading = "eager"; });
        const missing = () => pictures.filter((picture) => !picture.naturalWidth);
        Promise.allSettled(pictures.map((picture) => picture.decode())).then(
          () => done(missing().map((picture) => picture.src)));"""
    )
    assert broken == []
    links = [
        link.get_property("href") for link in browser.find_elements(By.CSS_SELECTOR, "a[href]")
    ]
    assert len(links) >= 6
    for url in (*links, *_requests(browser)):
        if not url.startswith("data:"):
            path = Path(unquote(urlsplit(url).path))
            assert (
                urlsplit(url).scheme == "file" and path.is_file() and path.is_relative_to(site)
            ), url
    assert browser.get_log("browser") == []
    assert not alert_is_present()(browser)


def test_rows_that_nobody_measured_are_behind_one_click(browser: Any, site: Path) -> None:
    _open(browser, site, "pages/tables")
    details = browser.find_element(By.CSS_SELECTOR, "#table-1 details")
    row = details.find_element(By.CSS_SELECTOR, "tbody tr")
    assert not row.is_displayed()
    details.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert row.is_displayed() and "–" in row.text


@pytest.mark.parametrize("width", [320, 390])
def test_no_number_of_the_results_is_cut_on_a_phone(browser: Any, site: Path, width: int) -> None:
    _screen(browser, width, 800)
    for page in ("index", "pages/benchmark-sample"):
        _open(browser, site, page)
        ends = browser.execute_script(
            "return [...document.querySelectorAll('table.cells td')].map("
            "cell => cell.getBoundingClientRect().right)"
        )
        assert ends and max(ends) <= width


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_phones_and_is_drawn_in_both_colour_schemes(
    browser: Any, site: Path, page: str
) -> None:
    means = {}
    for width, height, dark in (
        (320, 640, False),
        (400, 800, True),
        (1280, 800, False),
        (1280, 800, True),
    ):
        _screen(browser, width, height, dark=dark)
        _open(browser, site, page)
        size = browser.execute_script(
            "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
        )
        assert size == [width, width]
        pixels = _pixels(browser)
        assert pixels.std() > 8
        means[width, dark] = np.median(pixels)
    assert means[1280, True] < 64 < 192 < means[1280, False]


def test_the_site_works_behind_a_prefix(
    browser: Any, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(site.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, s3.serving(server):
        home = f"http://127.0.0.1:{server.server_port}/reports/"
        browser.get(f"{home}index.html")
        for text in ("Training", "Data", "sample", "Summary"):
            browser.find_element(By.LINK_TEXT, text).click()
        assert browser.current_url == f"{home}index.html"
        assert all(url.startswith((home, "data:")) for url in _requests(browser))
        assert browser.get_log("browser") == []
        browser.get("data:text/html,")  # closes its connections
