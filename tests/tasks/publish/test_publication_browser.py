"""The bucket in a real browser, by `gdpo-sr browse`: from the runs to a report and its pages, from
the models to a card.
"""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("selenium", reason="the package selenium is not installed (extra `dev`)")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from gdpo.hooks import Hooks
from tasks.params import load
from tasks.publish import browse, promotion, publication
from tasks.stages import report
from tasks.store import s3 as store_module
from tasks.store.s3 import Store
from tests import s3
from tests.tasks import fabricated
from tests.tasks.stages.test_report_browser import BROWSER, DRIVER, _screen, browser, driver  # noqa: F401 (fixtures)

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's packages chromium and chromium-driver"
    ),
]

RUNS = ("20261120T020000Z-first", "20261121T020000Z-second")
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[str]:
    """The address of a served bucket with two runs of a made-up pipeline, one of them promoted."""
    place = tmp_path_factory.mktemp("published")
    fabricated.outputs(place)
    report.run(load(root / "tests/params.yaml"), place, Hooks())
    (place / "models/gdpo").mkdir(parents=True, exist_ok=True)
    (place / "models/gdpo/adapters.safetensors").write_bytes(b"weights")
    shutil.copy(root / "tests/params.yaml", place)
    shutil.copytree(root / "profiles", place / "profiles")
    when = datetime(2026, 11, 21, 2, tzinfo=UTC)
    with pytest.MonkeyPatch.context() as patch, s3.server() as url:
        for name, value in s3.environment(url).items():
            patch.setenv(name, value)
        store_module._client.cache_clear()
        s3.client(url).create_bucket(Bucket="gdpo-sr")
        outs = ["models/gdpo", *(f"reports/{path.name}" for path in (place / "reports").iterdir())]
        for run in RUNS:
            publication.publish(
                place, "s3://gdpo-sr", run, outs=outs, kind="train", commit=HOSTILE, when=when
            )
        promotion.promote("s3://gdpo-sr", RUNS[0], when)
        with browse.server(Store.at("s3://gdpo-sr"), 0) as server, s3.serving(server):
            yield f"http://127.0.0.1:{server.server_port}"
    store_module._client.cache_clear()


def complaints(driver: Any) -> list[str]:  # noqa: F811
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_from_the_list_to_the_report(browser: Any, base: str) -> None:  # noqa: F811
    browser.get(base)
    assert browser.title == "Runs · GDPO-SR"
    links = [link.text for link in browser.find_elements(By.CSS_SELECTOR, "li strong")]
    assert links == list(RUNS[::-1])
    images = browser.find_elements(By.CSS_SELECTOR, "li img")
    browser.execute_script("arguments[0].scrollIntoView()", images[0])
    WebDriverWait(browser, 20).until(  # they load when they come into view
        lambda _: all(image.get_property("naturalWidth") > 0 for image in images)
    )
    assert "<script>aler" in browser.find_element(By.TAG_NAME, "main").text  # as text
    browser.find_element(By.LINK_TEXT, RUNS[1]).click()
    assert browser.current_url == f"{base}/runs/{RUNS[1]}/index.html"
    assert browser.find_elements(By.CSS_SELECTOR, "nav a[aria-current]")
    browser.find_element(By.CSS_SELECTOR, "nav a[href$='tables.html']").click()
    assert browser.current_url == f"{base}/runs/{RUNS[1]}/pages/tables.html"
    assert complaints(browser) == []


def test_the_models_and_a_card(browser: Any, base: str) -> None:  # noqa: F811
    browser.get(f"{base}/models/index.html")
    assert browser.find_element(By.CSS_SELECTOR, "li .latest").text == "LATEST"
    browser.find_element(By.LINK_TEXT, RUNS[0]).click()
    assert RUNS[0] in browser.find_element(By.TAG_NAME, "h1").text
    (file,) = browser.find_elements(By.LINK_TEXT, "adapters.safetensors")
    assert file.get_attribute("href") == f"{base}/runs/{RUNS[0]}/model/adapters.safetensors"
    assert len(browser.find_elements(By.CSS_SELECTOR, "tbody tr")) > 4
    assert complaints(browser) == []


@pytest.mark.parametrize("page", ["runs/index.html", "models/index.html", f"models/{RUNS[0]}.html"])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_in_both_modes(browser: Any, base: str, page: str, dark: bool) -> None:  # noqa: F811
    _screen(browser, 360, 740, dark=dark)
    browser.get(f"{base}/{page}")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    pixels = np.array(Image.open(BytesIO(browser.get_screenshot_as_png())).convert("L"))
    assert pixels.std() > 5
    assert (np.median(pixels) < 100) == dark
