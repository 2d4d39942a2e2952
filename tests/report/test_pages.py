from __future__ import annotations

from gradscope.report import pages
from tests.report.example_rule import ExampleRule

PAGE = r"""# example-rule

The example happens.

- Family: loop wiring
- Kind: cause
- Needs: `pulse.loss`, `fact.wiring`
- Steps it needs: 3
- Explains: `loss-plateau`

| threshold | value | |
| --- | ---: | --- |
| `share` | 0.5 | of the steps, a \| b |
| `silent` | 2 |  |

## What it does

It stands for all others.

## References

None.
"""

INDEX = """# Rules

What gradscope can name. `gradscope rules NAME` prints the same pages in the terminal.

## Loop wiring

| rule | kind | |
| --- | --- | --- |
| [example-rule](example-rule.md) | cause | The example happens. |

"""


def test_a_page_holds_what_the_rule_says_about_itself():
    assert pages.page(ExampleRule()) == PAGE


def test_the_index_leads_to_each_page():
    assert pages.pages([ExampleRule()]) == {"README.md": f"{INDEX}{pages.WORDS}\n", "example-rule.md": PAGE}
