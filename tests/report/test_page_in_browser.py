"""The report in a real, headless Chromium; skipped where there is none."""

import csv
import json
import shutil
from itertools import pairwise

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from grpo_ao.report.headline import headline_of
from grpo_ao.report.page import write_report
from grpo_ao.report.run_record import read_run
from tests.report.made_run import HOSTILE, PROBES, make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    record = read_run(make_run(tmp_path_factory.mktemp("report") / "run", evaluations=True))
    return write_report(record, headline_of(record, draws=20)).as_uri()


@pytest.fixture
def page(browser, address):
    show(browser, width=1200)
    browser.get(address)
    return browser


def show(browser, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def choose(page, identity: str, text: str) -> None:
    Select(page.find_element(By.ID, identity)).select_by_visible_text(text)


def count(page) -> str:
    return page.find_element(By.ID, "count").text


def unfold(page) -> None:
    page.execute_script(
        "document.querySelectorAll('#list details').forEach((d) => (d.open = true))"
    )


def stated(page) -> list[int]:
    """The confidences of the answers that are listed, not of those they are compared with."""
    rows = page.find_elements(By.CSS_SELECTOR, "#list .said:not(.other) .meter span")
    return [int(row.text) for row in rows]


def slide(page, identity: str, value: int) -> None:
    page.execute_script(
        "const slider = document.getElementById(arguments[0]); slider.value = arguments[1];"
        "slider.dispatchEvent(new Event('input', { bubbles: true }));",
        identity,
        value,
    )


def test_it_opens_from_disk_without_an_error_or_a_request(page):
    assert page.title == "run · grpo_ao run report"
    assert [entry["message"] for entry in page.get_log("browser")] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert any(url.startswith("file:") for url in asked)
    assert [url for url in asked if url.startswith(("http", "ws"))] == []


def test_a_hostile_text_is_shown_as_it_is_and_does_nothing(page):
    page.find_element(By.ID, "words").send_keys("onerror")
    assert not page.find_element(By.CSS_SELECTOR, "#list .text").is_displayed()
    page.find_element(By.CSS_SELECTOR, "#list summary").click()
    assert HOSTILE in page.find_element(By.CSS_SELECTOR, "#list .text").text
    assert page.find_element(By.CSS_SELECTOR, "#list .text mark").text == HOSTILE[10:19].strip()
    assert page.find_element(By.CSS_SELECTOR, "#list .question").text == HOSTILE
    assert page.find_elements(By.CSS_SELECTOR, "#list img, #list b:not(i > b)") == []
    assert "owned" not in page.title


def test_the_filters_choose_answers(page):
    assert count(page) == f"{PROBES} of {PROBES} questions."
    choose(page, "grade", "wrong (below 0.5)")
    assert count(page) == f"21 of {PROBES} questions."
    choose(page, "family", "city")
    assert count(page) == f"11 of {PROBES} questions."
    choose(page, "kind", "open")
    assert count(page) == f"0 of {PROBES} questions."
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    choose(page, "grade", "without a grade")
    assert count(page) == f"1 of {PROBES} questions."
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    page.find_element(By.ID, "words").send_keys("Question 59")
    assert count(page) == f"1 of {PROBES} questions."


def test_what_the_judge_wrote_stands_with_each_answer(page):
    asides = "#list .said:not(.other) .aside"
    assert 'judge: {"grade": "A"}' in page.find_element(By.CSS_SELECTOR, asides).text
    choose(page, "grade", "without a grade")
    said = page.find_element(By.CSS_SELECTOR, asides).text
    assert said == "judge: the reply is no grade: perhaps <b>A</b>"


def test_a_range_of_confidence_is_kept_and_orders_hold(page):
    slide(page, "low", 40)
    slide(page, "high", 90)
    assert page.find_element(By.ID, "range-shown").text == "40 to 90"
    choose(page, "order", "highest confidence first")
    listed = stated(page)
    assert listed and max(listed) <= 90 and min(listed) >= 40
    assert listed == sorted(listed, reverse=True)
    choose(page, "order", "lowest confidence first")
    assert stated(page) == sorted(stated(page))


def test_the_worst_overconfident_and_underconfident_answers_come_first(page):
    choose(page, "view", "before training, sampled")
    first = page.find_element(By.CSS_SELECTOR, "#list li")
    assert first.find_element(By.CSS_SELECTOR, ".grade").text == "✗ 0.00"
    over = stated(page)[0]
    choose(page, "order", "most underconfident first")
    first = page.find_element(By.CSS_SELECTOR, "#list li")
    assert first.find_element(By.CSS_SELECTOR, ".grade").text == "✓ 1.00"
    assert stated(page)[0] < over


def test_rollouts_are_listed_with_their_group(page):
    choose(page, "view", "rollouts of training")
    assert count(page) == "16 completions of 4 of 4 questions."
    slide(page, "low", 50)
    assert count(page) == "8 completions of 4 of 4 questions."
    unfold(page)
    card = page.find_element(By.CSS_SELECTOR, "#list li")
    assert len(card.find_elements(By.CSS_SELECTOR, ".said")) == 4
    assert len(card.find_elements(By.CSS_SELECTOR, ".said:not(.other)")) == 2


def test_more_answers_are_shown_when_asked_for(page):
    assert len(page.find_elements(By.CSS_SELECTOR, "#list li")) == 25
    more = page.find_element(By.ID, "more")
    more.send_keys(Keys.ENTER)
    more.send_keys(Keys.ENTER)
    assert len(page.find_elements(By.CSS_SELECTOR, "#list li")) == PROBES
    assert not more.is_displayed()


def test_a_bin_of_the_diagram_opens_its_answers_by_keyboard(page):
    address = "#answers&view=after+greedy&kind=closed&low=80&high=89"
    opens_bin(page, address).send_keys(Keys.ENTER)
    assert page.current_url.endswith(address)
    shown = [
        Select(page.find_element(By.ID, name)).first_selected_option for name in ("view", "kind")
    ]
    assert [option.text for option in shown] == ["after training, greedy", "closed"]
    listed = stated(page)
    assert listed and all(80 <= confidence <= 89 for confidence in listed)
    assert page.switch_to.active_element.get_attribute("id") == "answers"


def opens_bin(page, address: str):
    """The link of a diagram's disc."""
    links = page.find_elements(By.CSS_SELECTOR, "svg[aria-label^=Reliability] a")
    (found,) = [link for link in links if link.get_dom_attribute("xlink:href") == address]
    return found


def test_an_address_holds_the_filters(page, address):
    choose(page, "family", "city")
    page.find_element(By.ID, "words").send_keys("& question")
    slide(page, "low", 40)
    assert page.current_url.endswith("#answers&family=city&words=%26+question&low=40")
    page.get("about:blank")
    page.get(f"{address}#answers&family=city&grade=wrong")
    assert count(page) == f"11 of {PROBES} questions."
    page.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    assert count(page) == f"{PROBES} of {PROBES} questions."
    assert page.current_url.endswith("#answers")


def test_answers_that_training_made_right_are_found(page):
    choose(page, "change", "made it wrong")
    assert count(page) == f"0 of {PROBES} questions."
    choose(page, "change", "all")
    choose(page, "layer", "18")
    assert count(page) == f"20 of {PROBES} questions."


def test_what_is_shown_is_saved_as_a_table(page, tmp_path):
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    choose(page, "family", "city")
    page.find_element(By.ID, "words").send_keys("Question 5")
    page.find_element(By.ID, "save").click()
    path = tmp_path / "answers.csv"
    WebDriverWait(page, 10).until(lambda _: path.exists() and path.stat().st_size)
    rows = list(csv.DictReader(path.open(newline="")))
    assert {row["question"] for row in rows} == {f"Question {n}?" for n in (5, 51, 53, 55, 57, 59)}
    assert {row["family"] for row in rows} == {"city"}
    assert rows[0]["view"] == "after sampled" and 0 <= float(rows[0]["confidence"]) <= 1


def test_the_step_slider_reads_the_curves_by_keyboard(page):
    slider = page.find_element(By.ID, "step")
    reward = page.find_element(By.CSS_SELECTOR, "[data-curve=reward] output")
    assert (page.find_element(By.ID, "step-shown").text, reward.text) == ("40", "0.4")
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert (page.find_element(By.ID, "step-shown").text, reward.text) == ("38", "0.38")
    assert slider.get_attribute("aria-valuetext") == "step 38"


def test_focus_is_visible(page):
    page.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    skip = page.switch_to.active_element
    assert skip.text == "Skip to the results"
    assert skip.value_of_css_property("outline-style") == "solid"


# How it looks: boxes and colours as the browser computes them, which no font or version shifts


def lay_out(page, width: int, scheme: str = "light") -> None:
    """Show the page with all that can be unfolded, unfolded."""
    show(page, width, scheme)
    choose(page, "view", "rollouts of training")
    page.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")


@pytest.mark.parametrize("width", [320, 360, 768])
def test_a_narrow_screen_does_not_scroll_sideways(page, width):
    lay_out(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 360])
def test_no_column_of_a_table_is_hidden_on_a_phone(page, width):
    lay_out(page, width)
    assert page.execute_script(HIDDEN) == []


HIDDEN = """
return [...document.querySelectorAll(".scroll")]
  .filter((table) => table.scrollWidth > table.clientWidth + 1)
  .map((table) => table.getAttribute("aria-label"));
"""


@pytest.mark.parametrize("width", [360, 1200])
def test_no_words_of_a_figure_lie_on_others(page, width):
    lay_out(page, width)
    assert page.execute_script(OVERLAPS) == []


# The edge of a box is the space around its letters: a third of it must lie on the other.
OVERLAPS = """
const found = [];
for (const figure of document.querySelectorAll("main svg")) {
  const words = [...figure.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
  words.forEach(([one, a], i) => words.slice(i + 1).forEach(([other, b]) => {
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > Math.min(a.width, b.width) / 3 && down > Math.min(a.height, b.height) / 3)
      found.push([figure.getAttribute("aria-label"), one.textContent, other.textContent]);
  }));
}
return found;
"""


def test_headings_go_down_one_level_at_a_time(page):
    lay_out(page, 1200)
    headings = page.find_elements(By.CSS_SELECTOR, "h1, h2, h3, h4")
    levels = [int(heading.tag_name[1]) for heading in headings]
    assert levels[0] == levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))


@pytest.mark.parametrize(("scheme", "darkness"), [("light", (0.9, 1.0)), ("dark", (0.0, 0.02))])
def test_all_words_can_be_read_in_light_and_dark(page, scheme, darkness):
    lay_out(page, 1200, scheme)
    paper, *faint = page.execute_script(CONTRASTS)
    assert darkness[0] <= paper <= darkness[1]
    assert faint == []


# Luminance and contrast as in WCAG 2: 4.5 is its bound for text of a usual size.
CONTRASTS = """
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const luminance = (color) => {
  const [r, g, b] = channels(color).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return channels(color)[3] === 0 ? behind(element.parentElement) : color;
};
const found = [luminance(behind(document.body))];
for (const element of document.querySelectorAll("body *:not(script, style, option)")) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const color = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [luminance(color), luminance(behind(element))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) found.push([element.textContent.slice(0, 40), color]);
}
return found;
"""
