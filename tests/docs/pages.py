"""The code blocks of the documentation, their needs, and the ``flowopd`` commands in them."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "docs/tutorial.md", "docs/index.md")]
PAGES += sorted({*ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("*.md")} - {*PAGES})
PAGES = [page for page in PAGES if "_build" not in page.parts]
_REMARK = re.compile(r"^<!-- (needs|file): (.+?) -->$")
_HEREDOC = re.compile(r"<<'?(\w+)'?")
_BREAKS = {"|", "||", "&&", ";", "&"}
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, the language, the text, and what the comment above it says."""

    page: str
    line: int
    language: str
    text: str
    needs: frozenset = frozenset()
    file: str | None = None

    def __str__(self):
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One call of ``flowopd``: its words, where its output goes, whether the line goes on when it fails."""

    words: tuple
    target: str | None = None
    forgiven: bool = False
    block: Block | None = field(default=None, compare=False)

    def __str__(self):
        return f"{self.block}: {' '.join(self.words)}"


def blocks(page):
    """Every fenced block of a page."""
    remarks, found = {}, []
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            remark = _REMARK.match(token.content.strip())
            remarks |= {remark[1]: remark[2]} if remark else {}
        elif token.type == "fence":
            needs = frozenset(part.strip() for part in remarks.get("needs", "").split(",") if part)
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, token.map[0] + 1, token.info, token.content, needs, remarks.get("file")))
            remarks = {}
        elif token.nesting >= 0:
            remarks = {}
    return found


def commands(text, block=None):
    """The calls of ``flowopd`` in a piece of shell."""
    found, end = [], None
    for line in text.replace("\\\n", " ").splitlines():
        if end is not None:
            end = None if line.strip() == end else end
            continue
        heredoc = _HEREDOC.search(line)
        end = heredoc[1] if heredoc else None
        found += _commands(line, block) if not heredoc else []
    return found


def _commands(line, block):
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts, marks = [[]], []
    for word in lexer:
        if word in _BREAKS:
            parts.append([])
            marks.append(word)
        else:
            parts[-1].append(word)
    found = []
    for index, words in enumerate(parts):
        target = words[words.index(">") + 1] if ">" in words else None
        words = _own(words[: words.index(">")] if ">" in words else words)
        if words is not None:
            found.append(Command(tuple(words), target, marks[index : index + 1] == ["||"], block))
    return found


def _own(words):
    """What follows ``flowopd``, behind assignments and behind programs that start it."""
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words and (words[0] == "flowopd" or words[0].endswith("/flowopd")):
        return words[1:]
    if words and words[0] in {"timeout", "accelerate"}:
        name = "flowopd" if words[0] == "timeout" else "flowopd_cli"
        return words[words.index(name) + 1 :] if name in words else None
    return None


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
COMMANDS = [command for block in SHELL for command in commands(block.text, block)]
