"""The page in a browser: what a person does with it. Skipped where Playwright or a Chromium is missing."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prnn.reporting import page as report_page
from prnn.reporting.runs import load_all
from prnn.reporting.watch import Server, Source
from tests.reporting.conftest import ranks_at, trained_at

playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium"),
    pytest.mark.slow(seconds=3),
]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip
OUTLIER = 9000.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: of a language model until step 400 and 300 with a record every 2 and 3 steps, one with an outlier and
    a gap; and of images, on two processes.
    """
    folder = tmp_path_factory.mktemp("runs")

    def write(name: str, task: str, records: list[dict[str, Any]]) -> str:
        path = folder / name
        (path / ".hydra").mkdir(parents=True)
        (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        (path / ".hydra" / "config.yaml").write_text(f"task: {{name: {task}}}\ndata: {{level: char}}\n")
        return str(path)

    def loss(step: int) -> float | None:
        wave = 0.1 if step % 4 == 0 else -0.1
        return OUTLIER if step == 200 else None if 250 <= step < 260 else 1.5 + 2.0 * 0.98**step + wave

    first = [trained_at(step, loss=loss(step)) for step in range(2, 401, 2)]
    second = [trained_at(step, tokens=50 * step) for step in range(3, 301, 3)]
    validations = [{"kind": "val", "step": step, "loss": 2.0, "figures": {}} for step in (100, 200)]
    images = [
        trained_at(10),
        {"kind": "val", "step": 10, "loss": 1.0, "figures": {"accuracy": 0.25, "f_1": 1, "f 1": 2}},
        ranks_at(10, 2, 1),
    ]
    names = [write("lm/gru", "char_lm", [*first, *validations]), write("lm/lstm<b>&", "char_lm", second),
             write("images/irnn", "irnn_mnist", images)]  # fmt: skip
    report_page.write(load_all(names), folder / "report.html")
    return folder / "report.html"


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any, report: Path) -> Iterator[Open]:
    """Open the page; at the end, nothing was complained of, nor asked of a network."""
    complaints: list[str] = []
    pages = []

    def open_page(address: str = "", width: int = 1280, **more: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **more)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if served(asked.url) else complaints.append(asked.url))
        page.goto(address if address.startswith("http") else f"{report.as_uri()}{address}")
        if more.get("java_script_enabled", True):
            page.locator(".u-over, #nothing:visible").first.wait_for()
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    assert [each for each in complaints if "ERR_INTERNET_DISCONNECTED" not in each] == []


def served(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


def shown(page: Any, title: str = "Loss") -> list[float]:
    """The range of a chart: x from, x to, y from, y to."""
    label = chart(page, title).locator(".plot").get_attribute("aria-label") or ""
    numbers = re.findall(r"-?\d[\d,.]*(?:e-?\d+)?", label.removeprefix(title))
    return [float(each.replace(",", "")) for each in numbers]


def chart(page: Any, title: str) -> Any:
    return page.locator("figure.chart", has=page.locator(f"b:text-is('{title}')")).first


def over(page: Any, title: str) -> Any:
    """The plotting area of a chart, in view."""
    box = chart(page, title).locator(".plot")  # what is in it, scrolling draws first
    box.evaluate("(each) => each.scrollIntoView({ block: 'center' })")
    settle(page)
    return box.locator(".u-over")


def drag(page: Any, title: str, start: float, end: float) -> None:
    box = over(page, title).bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], middle + 3, steps=3)
    page.mouse.up()
    settle(page)


def drag_up(page: Any, title: str) -> None:
    """Zoom to the lower half of the y axis."""
    box = over(page, title).bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + box["height"] - 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 103, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    settle(page)


def settle(page: Any) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def hover(page: Any, title: str, share: float) -> str:
    box = over(page, title).bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    settle(page)
    return " ".join(page.locator(".tooltip:visible").inner_text().split())


def picture(page: Any, title: str) -> str:
    over(page, title)
    return chart(page, title).locator("canvas").evaluate("(canvas) => canvas.toDataURL()")


def test_zoom_and_pan_are_those_of_all_charts(open_page: Open) -> None:
    page = open_page()
    assert shown(page)[:2] == [0, 400] == shown(page, "Throughput")[:2]
    drag(page, "Loss", 0.25, 0.5)
    low, high = shown(page)[:2]
    assert low == pytest.approx(100, abs=4) and high == pytest.approx(200, abs=4)
    assert shown(page, "Throughput")[:2] == [low, high]
    page.wait_for_url("**#zoom=*")
    page.reload()
    page.locator(".u-over").first.wait_for()
    assert shown(page)[:2] == [low, high], "a reload shows the same"
    page.keyboard.down("Shift")
    drag(page, "Throughput", 0.2, 0.7)
    page.keyboard.up("Shift")
    assert shown(page)[:2] == [pytest.approx(50, abs=6), pytest.approx(150, abs=6)]
    chart(page, "Loss").locator(".plot").focus()
    page.keyboard.press("-")
    settle(page)
    assert shown(page)[1] - shown(page)[0] > 150
    page.keyboard.press("0")
    settle(page)
    assert shown(page)[:2] == [0, 400]
    page.keyboard.down("Control")
    hover(page, "Loss", 0.5)
    page.mouse.wheel(0, -50)
    page.keyboard.up("Control")
    settle(page)
    low, high = shown(page)[:2]
    assert 50 < low < 150 and low + high == pytest.approx(400, abs=8), "around the pointer"
    drag_up(page, "Loss")
    assert shown(page)[:2] == [low, high] and shown(page)[3] < 4
    chart(page, "Loss").locator(".u-over").dblclick()
    settle(page)
    assert shown(page)[:2] == [0, 400] and page.locator("#reset").is_disabled()


def test_outliers_are_outside_until_they_are_asked_for_and_gaps_stay(open_page: Open) -> None:
    page = open_page()
    assert shown(page)[3] < 5
    button = chart(page, "Loss").get_by_text("1 outside · show all")
    button.click()
    settle(page)
    assert shown(page)[3] > OUTLIER
    chart(page, "Loss").get_by_text("hide outliers").click()
    settle(page)
    assert shown(page)[3] < 5
    assert "step 260" in hover(page, "Loss", 256 / 400), "a gap has no value: the nearest one is told"


def test_smoothing_axes_and_words_under_the_pointer(open_page: Open) -> None:
    page = open_page()
    text = hover(page, "Loss", 0.25)  # step 100
    assert text.startswith("training validation lm/gru")
    assert "at step 100 2 at step 100" in text and "lm/lstm<b>& 3.01 at step 99" in text
    before = picture(page, "Loss")
    page.locator("#smoothing").fill("0.9")
    settle(page)
    assert picture(page, "Loss") != before and page.locator("#smoothed").inner_text() == "0.90"
    average, remaining = 0.0, 1.0  # of the losses 4 - step / 100, until step 99
    for step in range(3, 100, 3):
        average, remaining = 0.9 * average + 0.1 * (4.0 - 0.01 * step), 0.9 * remaining
    assert f"lm/lstm<b>& {average / (1 - remaining):.5g} (3.01 raw) at step 99" in hover(page, "Loss", 0.25)
    page.locator("#smoothing").fill("0")
    page.locator("#scale").get_by_text("log").click()
    settle(page)
    assert chart(page, "Step time").get_by_role("button", name="log").get_attribute("aria-pressed") == "true"
    assert shown(page, "Step time")[2] > 0
    drag(page, "Loss", 0.1, 0.9)
    assert shown(page)[0] > 0
    page.locator("#axis").get_by_text("tokens").click()
    settle(page)
    assert shown(page)[:2] == [0, 40000]
    assert "lm/lstm<b>& 2.02 at 9,900 characters, step 198" in hover(page, "Loss", 0.2475)
    page.locator("#axis").get_by_text("time").click()
    settle(page)
    assert "at 50 s, step 100" in hover(page, "Loss", 0.25)
    over(page, "Accuracy")
    label = chart(page, "Accuracy").locator(".plot").get_attribute("aria-label") or ""
    assert re.fullmatch(r"Accuracy: 0 s to 5 s, [\d.]+ % to [\d.]+ %; arrow keys show values", label)


def test_a_run_is_hidden_everywhere_and_shown_alone(open_page: Open) -> None:
    page = open_page()
    before = picture(page, "Throughput")
    gru = page.locator("#runs").get_by_role("button", name="lm/gru")
    gru.click()
    settle(page)
    assert shown(page)[:2] == [0, 300] and picture(page, "Throughput") != before
    assert gru.get_attribute("aria-pressed") == "false" and "lm/gru" not in hover(page, "Loss", 0.5)
    assert "off" in (page.locator(".overview tr[data-run='0']").get_attribute("class") or "")
    assert page.locator("[data-live=made-with] th[data-run='0']").is_hidden()
    gru.click()
    page.locator(".overview tbody").get_by_role("button", name="images/irnn").click(modifiers=["Alt"])
    settle(page)
    assert [each.get_attribute("aria-pressed") for each in page.locator("#runs button").all()] == [
        "false", "false", "true",
    ]  # fmt: skip
    assert "its runs are hidden" in chart(page, "Loss").inner_text()
    page.locator("#runs button").nth(2).dblclick()
    assert page.locator("#runs button[aria-pressed=true]").count() == 3


def test_the_overview_is_sorted_by_its_headers(open_page: Open) -> None:
    page = open_page()

    heads = page.locator(".overview thead th").all_inner_texts()
    time = heads.index("training time")
    header = page.locator(".overview thead th").nth(time)
    for direction, expected in (
        ("ascending", ["5.0 s", "2 min 30 s", "3 min 20 s"]), ("descending", ["3 min 20 s", "2 min 30 s", "5.0 s"])
    ):  # fmt: skip
        header.get_by_role("button").click()
        assert page.locator(f".overview tbody tr td:nth-child({time + 1})").all_inner_texts() == expected
        assert header.get_attribute("aria-sort") == direction
    best = heads.index("best validation loss")
    page.locator(".overview thead th").nth(best).get_by_role("button").click()
    assert page.locator(f".overview tbody tr td:nth-child({best + 1})").all_inner_texts() == ["1", "2", "–"]


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_window(open_page: Open, width: int) -> None:
    page = open_page(width=width, color_scheme="dark", has_touch=width == 390)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    count = page.evaluate("JSON.parse(document.getElementById('data').textContent).charts.length")
    assert page.locator("figure.chart").count() == count, "also of two fields that have the same words"
    scroller = page.locator(".scroll").first.evaluate("(each) => [each.scrollWidth, each.clientWidth]")
    assert (scroller[0] > scroller[1]) == (width == 390), "at 1280 px the overview fits"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    if width == 390:
        plot = over(page, "Loss")
        box = plot.bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + 40)
        assert "at step" in page.locator(".tooltip:visible").inner_text()
        assert plot.evaluate("(each) => getComputedStyle(each).touchAction") == "pan-y"
        pinch(page, box)
        low, high = shown(page)[:2]
        assert low > 50 and high < 350 and page.evaluate("scrollY") >= 0


def pinch(page: Any, box: dict[str, float]) -> None:
    """Two fingers move apart."""
    session = page.context.new_cdp_session(page)
    middle, y = box["x"] + box["width"] / 2, box["y"] + 60

    def send(kind: str, *places: float) -> None:
        points = [{"x": place, "y": y, "id": number} for number, place in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", middle - 30, middle + 30)
    for apart in (45, 60, 75):
        send("touchMove", middle - apart, middle + apart)
        settle(page)
    send("touchEnd")
    settle(page)


def test_without_javascript_there_are_tables_and_a_sentence(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert "The charts need JavaScript" in page.locator("noscript").inner_text()
    assert page.locator(".overview tbody tr").count() == 3 and page.locator("#toolbar").is_hidden()


def test_a_watched_page_follows_its_run_and_keeps_what_was_chosen(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("task: {name: char_lm}\n")
    records = tmp_path / "run" / "metrics.jsonl"

    def add(steps: range) -> None:
        sample = {"kind": "sample", "step": steps[-1], "text": "to be"}
        with records.open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in (*map(trained_at, steps), sample))

    server = Server(Source([str(tmp_path / "run")], seconds=0.1))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = open_page(server.url)
        page.locator("#status.live").wait_for()
        assert page.locator("figure.chart").count() == 0  # nothing is recorded yet
        add(range(1, 51))
        add(range(51, 101))
        page.locator(".u-over").first.wait_for()
        page.locator("#smoothing").fill("0.5")
        drag(page, "Loss", 0.2, 0.6)
        zoomed = shown(page)[:2]
        before = picture(page, "Memory")
        page.locator("[data-key='sample 0 50'] summary").click()
        page.evaluate("scrollTo(0, 120)")
        where = page.evaluate("scrollY")
        add(range(101, 201))
        page.locator(".tiles div", has_text="steps").locator("dd", has_text="200").wait_for()
        settle(page)
        assert shown(page)[:2] == zoomed and page.locator("#smoothed").inner_text() == "0.50"
        assert page.evaluate("scrollY") == where
        opened = page.locator("details[open]").evaluate_all("(all) => all.map((each) => each.dataset.key)")
        assert opened == ["sample 0 200", "sample 0 50"]
        pointed = hover(page, "Learning rate", 0.5)
        page.locator("#smoothing").evaluate("(each) => each.dispatchEvent(new Event('input'))")
        settle(page)
        assert " ".join(page.locator(".tooltip:visible").inner_text().split()) == pointed, "drawn again, it stays"
        page.locator("#reset").click()
        settle(page)
        assert shown(page)[:2] == [0, 200] and picture(page, "Memory") != before
        (tmp_path / "run" / "summary.json").write_text(json.dumps({"steps": 200, "unit": "characters"}))
        page.get_by_text("the run has ended").wait_for()
        page.context.set_offline(True)
        page.get_by_text("the server is gone").wait_for()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
