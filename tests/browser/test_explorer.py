"""Notebook 02 in a browser: it runs, its explorer follows the mouse, and what cannot be done is a sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import papermill
import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.lab import ROOT, browsing, chromium, command, jupyterlab, opened, run_all, until

pytestmark = [pytest.mark.slow, pytest.mark.embedded]

PICTURES = ROOT / "runs" / "browser"


class Page:
    """What the test does with the explorer: look, click, wait."""

    def __init__(self, browser: WebDriver) -> None:
        self.browser = browser

    def find(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements("css selector", selector)

    def click(self, element: WebElement) -> None:
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'});", element)
        element.click()

    def button(self, name: str) -> WebElement:
        return until(
            lambda: next((one for one in self.find("button.jupyter-button") if one.text == name), None),
            20,
            f"the button {name!r}",
        )

    def says(self, words: str, seconds: float = 30) -> None:
        until(lambda: any(words in text for text in self.htmls()), seconds, f"{words!r} in the explorer")

    def htmls(self) -> list[str]:
        try:
            return [element.text for element in self.find(".widget-html-content")]
        except StaleElementReferenceException:
            return []

    def picture(self, title: str) -> str:
        """The picture under a heading, as it is in the page; empty where there is none."""
        script = (
            "const head = [...document.querySelectorAll('.widget-html-content h3')]"
            ".find(one => one.textContent === arguments[0]);"
            "return head?.parentElement.querySelector('img')?.src ?? '';"
        )
        found: str = self.browser.execute_script(script, title)
        return found

    def changed(self, title: str, before: str, seconds: float = 30) -> str:
        return until(
            lambda: (now := self.picture(title)) != before and now, seconds, f"another picture under {title!r}"
        )

    def keep(self, name: str) -> None:
        self.browser.save_screenshot(str(PICTURES / f"{name}.png"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    chromium()
    folder = tmp_path_factory.mktemp("browser")
    (folder / "notebooks").mkdir()
    source = ROOT / "notebooks" / "02_find_concept_neurons.ipynb"
    papermill.execute_notebook(
        source,
        folder / "notebooks" / source.name,
        parameters={"quick": True, "out": str(folder / "out")},
        prepare_only=True,
    )
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    with jupyterlab(folder / "notebooks", folder) as address, browsing(folder) as browser:
        opened(browser, address, source.name)
        shown = Page(browser)
        try:
            run_all(browser, 600)  # a minute and a half where two cores are free
        finally:
            shown.keep("1_notebook")
        until(lambda: shown.find("button[data-cell]"), 30, "the heat map")
        yield shown


def test_clicking_a_cell_and_neurons_changes_what_is_shown(page: Page) -> None:
    cell = page.find('button[data-cell="3,10"]')[0]
    layer, _, when = cell.get_attribute("aria-label").partition(", ")
    page.click(cell)
    page.says(f"{layer}, {when.split(':')[0]}")
    assert not page.picture("Concept against reference")

    options = until(lambda: page.find(".widget-select option"), 10, "neurons to choose from")
    page.click(options[0])
    first = page.changed("Concept against reference", "")
    assert first.startswith("data:image/png;base64,")
    pictures = page.changed("Pictures", "")
    page.keep("2_neuron")
    page.click(page.find(".widget-select option")[1])
    page.changed("Concept against reference", first)
    page.changed("Pictures", pictures)
    page.keep("3_another_neuron")


def test_what_cannot_be_done_is_a_sentence(page: Page) -> None:
    page.click(page.button("clear"))
    page.says("selection: empty")
    page.click(page.button("save selection"))
    page.says("no file name")
    page.click(page.button("rank by prompt"))
    page.says("there is no prompt")
    assert not any("Traceback" in text for text in page.htmls())
    page.keep("4_message")


def test_an_interrupt_while_it_draws_is_a_sentence(page: Page) -> None:
    page.click(page.button("draw where it fires"))
    page.says("working")
    command(page.browser, "notebook:interrupt-kernel")
    page.says("interrupted")
    page.keep("5_interrupted")


def test_silencing_shows_before_and_after(page: Page) -> None:
    page.click(page.button("add"))
    until(lambda: "selection: empty" not in page.htmls(), 20, "the neuron in the selection")
    page.click(page.button("silence, and draw"))
    page.changed("Before and after", "", 60)
    page.keep("6_before_and_after")
