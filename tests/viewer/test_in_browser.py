"""The page in a real, headless Chromium: it loads, hangs right, a phrase changes the map, nothing leaves this machine."""

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

import chromium
import numpy as np
import pytest
import uvicorn
from fakes import SHAPE
from small_set import dataset, viewer

from mammoclip_jax.delivery.page import exam_page
from mammoclip_jax.viewer import guard
from mammoclip_jax.viewer.export import described

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium is here")
SHOWN = "document.body && document.body.dataset.state === 'shown' && document.body.dataset.map === 'shown'"
# Where the light of a view's canvas lies: mean grey of its left and right quarter.
QUARTERS = """(() => {
  const found = {};
  for (const cell of document.querySelectorAll('.cell[data-view]')) {
    const canvas = cell.querySelector('canvas'), place = canvas.getBoundingClientRect();
    const {data, width, height} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let left = 0, right = 0;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      if (x < width / 4) left += data[4 * (y * width + x)];
      if (x >= 3 * width / 4) right += data[4 * (y * width + x)];
    }
    found[cell.dataset.view] = {x: place.x, y: place.y, left, right};
  }
  return found;
})()"""
PIXELS = "[...document.querySelectorAll('.cell canvas')].map((canvas) => canvas.toDataURL()).join()"


@contextlib.contextmanager
def served(page):
    """The address of a running server."""
    listening = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(
        page.app(guard.names_of("127.0.0.1")), log_config=None, log_level="error", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        for side in page.sides:
            side.survey.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.opened(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def shown():
    return viewer(dataset(bits=16), stored=True)


@pytest.fixture(scope="module")
def address(shown):
    with served(shown) as url:
        yield url


@pytest.fixture
def page(browser, address):
    browser.requests.clear(), browser.errors.clear()
    browser.resize(1280, 800)
    browser.go("about:blank")
    browser.go(address)
    browser.until(SHOWN)
    return browser


def settled(page):
    """Behind the next two frames, when all has been painted."""
    page.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 20))))")


def test_it_hangs_right(page):
    """The right breast at the viewer's left, its chest wall in the middle; CC above MLO; walls meet."""
    page.key("h")
    settled(page)
    found = page.value(QUARTERS)
    assert set(found) == {"R CC", "L CC", "R MLO", "L MLO"}
    for view in ("CC", "MLO"):
        right, left = found[f"R {view}"], found[f"L {view}"]
        assert right["x"] < left["x"] and right["y"] == left["y"]
        assert right["right"] > 4 * right["left"] and left["left"] > 4 * left["right"]
    assert found["R CC"]["y"] < found["R MLO"]["y"]
    assert not page.errors


def test_a_phrase_changes_the_map_and_says_how_near_it_is(page, shown):
    settled(page)
    model = shown.sides[0].reader.model
    model.saliency = lambda images, texts, *, stage, method: np.repeat(
        np.linspace(0, 1, SHAPE[0], dtype=np.float32)[None, :, None] * (texts[:, :1, None] > 0.5), SHAPE[1], 2
    )
    before = page.value(PIXELS)
    page.key("/")
    for letter in "no mass":
        page.key(letter)
    page.until("!document.getElementById('said').hidden && document.body.dataset.map === 'shown'")
    settled(page)
    assert page.value(PIXELS) != before
    words = page.value("[...document.querySelectorAll('.words')].map((one) => one.textContent)")
    assert all("no mass" in text for text in words) and len(words) == 4
    cosine = float(page.value("document.querySelector('#said tbody td').textContent").split()[0])
    assert -1 <= cosine <= 1
    del model.saliency
    assert not page.errors


def test_keys_move_between_exams_and_change_the_display(page, shown):
    names = shown.catalogue.exams
    for key, wanted in (("j", 1), ("ArrowRight", 2), ("k", 1)):
        page.key(key)
        page.until(f"location.hash === '#exam={names[wanted]}' && {SHOWN}")
    for key in "jjjjkk":  # faster than the exams come
        page.key(key)
    page.until(f"location.hash === '#exam={names[3]}' && {SHOWN}")
    assert page.value("document.getElementById('position').textContent") == "4 of 6"
    settled(page)
    before = page.value(PIXELS)
    for key in ("i", "r", "b", "b"):
        page.key(key)
        settled(page)
    assert page.value(PIXELS) == before  # inverted and put back, boxes away and back
    page.key("+")
    settled(page)
    assert page.value(PIXELS) != before
    page.key("1")
    assert page.value(
        "[...document.querySelectorAll('.cell[data-view]:not(.away)')].map((one) => one.dataset.view)"
    ) == ["R CC"]
    page.key("Escape")
    assert page.value("document.querySelectorAll('.cell.away').length") == 0
    page.key("?")
    assert page.value("document.getElementById('keys').open")


def test_the_window_takes_all_of_16_bits(page):
    page.key("h"), page.key("n"), page.key("b")
    settled(page)
    whole = page.value(PIXELS)
    page.key("a")
    settled(page)
    assert page.value(PIXELS) != whole
    low, high = (
        int(x.replace(",", "")) for x in page.value("document.getElementById('window').textContent").split("–")
    )
    assert 255 < low < high <= 65535


def test_filters_shorten_the_list(page, shown):
    wanted = shown.catalogue.facets["density"]["B"]
    page.value(
        "(() => { const select = document.querySelector('[name=\"label.density\"]'); select.value = 'B';"
        "select.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    page.until(f"document.getElementById('count').textContent === '{wanted} of 6 exams'")
    page.until(f"document.querySelectorAll('#exams li').length === {wanted}")


def test_the_nearest_are_shown_and_lead_to_their_exams(page, shown):
    page.key("x")
    page.until(
        "document.querySelectorAll('.near-exams button').length === 5 && document.getElementById('progress').hidden"
    )
    page.value("document.querySelector('.near-exams button').click()")
    page.until(f"location.hash !== '#exam={shown.catalogue.exams[0]}' && {SHOWN}")


def test_nothing_leaves_this_machine_and_nobody_is_named(page, address, shown):
    page.key("j")
    page.until(f"location.hash === '#exam={shown.catalogue.exams[1]}' && {SHOWN}")
    page.key("x")
    page.until("document.querySelectorAll('.near-exams img').length > 0")
    hosts = {urlsplit(url).netloc for url in page.requests if urlsplit(url).scheme not in ("data", "blob", "about")}
    assert hosts == {urlsplit(address).netloc} and len(page.requests) > 10
    assert not page.value("fetch('http://example.invalid/').then(() => true, () => false)")  # the policy forbids it
    text = page.value("document.documentElement.outerHTML")
    names = {str(x) for column in ("patient", "study", "image") for x in shown.catalogue.dataset.index[column]}
    assert not [name for name in names if name in text or any(name in url for url in page.requests)]


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_it_fits_the_screen(page, width, height):
    page.resize(width, height)
    time.sleep(0.2)
    assert page.value("document.documentElement.scrollWidth") == width
    sizes = page.value("[...document.querySelectorAll('.cell canvas')].map((one) => one.getBoundingClientRect().width)")
    assert min(sizes) > width / 5
    page.key("e")
    shown = page.value("getComputedStyle(document.getElementById('list')).display !== 'none'")
    assert shown == (width < 900)  # a drawer on a small screen, away on a large one


def test_two_models_side_by_side(browser):
    page = viewer(models=("one", "two"))
    with served(page) as url:
        browser.go(url)
        browser.until(f"{SHOWN} && document.querySelectorAll('.cell canvas').length === 8")
        browser.key("c")
        browser.until("document.querySelectorAll('.cell canvas').length === 4")
        browser.value("document.querySelector('#score-all button').click()")  # nothing is stored
        browser.until("document.getElementById('by').value === '0 mass' && document.getElementById('score-all').hidden")
        browser.until("document.querySelectorAll('#exams .score').length === 6")


def test_an_exported_exam_works_without_a_server(browser, shown, tmp_path):
    exam = described(shown.catalogue, shown.sides[0], 2, tmp_path)
    target = tmp_path / "exam.html"
    target.write_text(exam_page(exam, {"preprocessing": shown.catalogue.dataset.info["preprocessing"]}, tmp_path))
    browser.requests.clear(), browser.errors.clear()
    browser.go(target.as_uri())
    browser.until("document.querySelectorAll('figure svg').length === 4 && document.readyState === 'complete'")
    opacity = "document.querySelector('.heat').getAttribute('opacity')"
    before = browser.value(opacity)
    browser.value(
        "(() => { const slider = document.querySelector('[name=opacity]'); slider.value = 30;"
        "slider.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert browser.value(opacity) == "0.3" != before and not browser.errors
    assert {urlsplit(url).scheme for url in browser.requests} <= {"file", "data"}
    for width in (1280, 390):
        browser.resize(width, 844)
        assert browser.value("document.documentElement.scrollWidth") == width
