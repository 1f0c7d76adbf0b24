"""Every link between pages of the repository leads to an existing file and heading."""

import re
import unicodedata
from urllib.parse import unquote

import pages
import pytest
from markdown_it import MarkdownIt


def inline(page):
    """The inline parts of a page, with their links and pictures."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
        yield from token.children or []


def targets(page):
    """Where the links and pictures of a page lead, those to other sites left out."""
    found = [part.attrGet("href") or part.attrGet("src") for part in inline(page)]
    return [unquote(target) for target in found if target and not re.match(r"[a-z]+:", target)]


def anchors(page):
    """The anchors that headings get, as GitHub makes them."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    texts = [tokens[i + 1] for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {slug("".join(part.content for part in text.children)) for text in texts}


def slug(text):
    letters = (c for c in text.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(letters).replace(" ", "-")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(pages.ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in targets(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), target


def test_every_page_of_the_site_is_in_its_navigation_once():
    trees = [block.text for block in pages.BLOCKS if block.page == "docs/index.md" and block.language == "{toctree}"]
    named = [line for text in trees for line in text.splitlines() if line and not line.startswith(":")]
    docs = pages.ROOT / "docs"
    files = {page.relative_to(docs).with_suffix("").as_posix() for page in pages.PAGES if docs in page.parents}
    assert sorted(named) == sorted(files - {"index"})
