"""axe-core 4.14.1, unchanged from its npm package `axe-core` (MPL 2.0): the checker of accessibility rules."""

from __future__ import annotations

from pathlib import Path

from selenium import webdriver

SCRIPT = Path(__file__).with_name("axe.min.js").read_text()

RUN = """
const [rules, done] = arguments;
const chosen = rules.length > 0 ? {runOnly: {type: "rule", values: rules}} : {};
// Preloading adds style elements to the page, which its policy reports as violations.
const options = {resultTypes: ["violations"], preload: false, ...chosen};
// Colours of a transition are those of neither state.
document.getAnimations().filter((animation) => animation instanceof CSSTransition).forEach((one) => one.finish());
axe.run(document, options).then(({violations}) => done(violations.map(
  ({id, nodes}) => [id, ...nodes.slice(0, 4).map(({target}) => target.join(" "))])));
"""


def violations(driver: webdriver.Chrome, *rules: str) -> list[list[str]]:
    """Return the violated rules, by default of all, each with up to four elements that violate it."""
    # Not as a script of the page, whose content security policy allows none.
    driver.execute_cdp_cmd(
        "Runtime.evaluate", {"expression": f"if (!window.axe) {{ {SCRIPT} }} undefined"}
    )
    found = driver.execute_async_script(RUN, rules)
    assert isinstance(found, list)
    return found
