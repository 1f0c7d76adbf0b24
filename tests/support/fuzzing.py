"""Support of the fuzz tests: odd values, mutations of valid files, and a guard around each example.

``both`` makes two tests of a property: a few fixed examples, and thousands under ``-m slow``. Inside ``guarded`` code
may not write outside the example's folder, start a program, open a connection, raise any error but ``FlowOPDError``,
or exceed the time limit.
"""

import json
import math
import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flowopd_cli.errors import FlowOPDError, one_line
from flowopd_cli.runs.manifest import environment

SECONDS = 20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {f"os.{name}" for name in ("mkdir", "rename", "symlink", "link", "truncate", "chmod", "chown")}
FORBIDDEN = {f"os.{name}" for name in ("system", "exec", "posix_spawn", "fork")}
FORBIDDEN |= {"subprocess.Popen", "pickle.find_class", "ctypes.dlopen"}
_state = threading.local()


def _audit(event, args):
    box = getattr(_state, "box", None)
    if box is None:
        return
    if event in FORBIDDEN or (event == "socket.connect" and not getattr(_state, "network", False)):
        _state.violations.append(f"{event} {args!r}"[:300])
    if event == "open" and isinstance(args[2], int) and args[2] & WRITING and not isinstance(args[0], int):
        _record(box, event, args[0])
    elif event in {"os.remove", "os.rmdir"}:
        _record(box, event, _below(args[1], args[0]))
    elif event in CHANGES:
        for name in args[:2] if event in {"os.rename", "os.symlink", "os.link"} else args[:1]:
            _record(box, event, name)


def _below(folder, name):
    """The path of a name relative to an open folder, as ``shutil.rmtree`` gives it."""
    if not isinstance(folder, int) or folder < 0 or isinstance(name, int):
        return name
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(name))


def _record(box, event, name):
    if isinstance(name, str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(name))
        if not path.startswith(f"{box}{os.sep}") and path != box and not path.startswith(("/dev/null", "/proc/")):
            _state.violations.append(f"{event} {path}")


environment()  # starts a program to find the name of the system, once a process
sys.addaudithook(_audit)


@contextmanager
def guarded(box):
    """Inside the block only a ``FlowOPDError`` with a one-line message may be raised."""

    def late(number, frame):
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _state.box, _state.violations = os.path.realpath(box), []
    try:
        yield
    except FlowOPDError as error:
        line = one_line(error)
        assert line
        assert line.isprintable()
    finally:
        violations, _state.box = _state.violations, None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not violations, violations


@contextmanager
def folder():
    """A fresh folder for one example."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _settings(examples, **more):
    return settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck), **more
    )


def both(strategies, function, quick, thorough):
    """Two tests of a property: the same ``quick`` examples every time, and a slow one of many random examples."""
    return (
        _settings(quick, derandomize=True)(strategies(function)),
        pytest.mark.slow(_settings(thorough)(strategies(function))),
    )


# -- odd values -------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(
    [
        *("", " ", "x", "x" * 300, "x" * 5000, "\0", "a\0b", "\ud800", "\u202e", "\x1b[2J", "a\nb", "é", "🙂", "١"),
        *("²", "../../x", "/etc/passwd", "..", ".", "~", "C:\\x", "a/b", "a/b/c", "hub:", "hub:a/b", "hub:a/b@"),
        *("base", "toy", "http://u:p@h/x", "remote:http://h:1", "os:system", "None", "null", "true", "1", "-1"),
        *("1e999", "nan", "%s", "{x}", "toy:all", "toy:geneval", "p.txt", "geneval", "ocr", "toy-ocr", "teacher"),
        *("(a+)+$", "[", "{", "&a", "*a", "!!x"),
    ]
)
NUMBERS = st.sampled_from(
    [
        *(0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.0, -0.5, 1e-320, 1e308),
        *(math.inf, -math.inf, math.nan),
    ]
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    TEXTS,
    st.text(max_size=20),
    st.recursive(
        st.one_of(st.none(), NUMBERS, TEXTS),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
        max_leaves=6,
    ),
)


def paths(tree, here=()):
    """The way to every value of a tree."""
    yield here
    if isinstance(tree, dict):
        for key in tree:
            yield from paths(tree[key], (*here, key))
    elif isinstance(tree, list):
        for index in range(len(tree)):
            yield from paths(tree[index], (*here, index))


@st.composite
def mutated(draw, tree, most=3):
    """A tree in which up to ``most`` values are replaced, removed or added."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(0, most))):
        way = draw(st.sampled_from([path for path in paths(tree) if path] or [()]))
        if not way:
            return draw(ODD)
        *parents, last = way
        node = tree
        for part in parents:
            node = node[part]
        act = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if act == "remove":
            del node[last]
        elif act == "replace" or not isinstance(node, dict):
            node[last] = draw(ODD)
        else:
            node[draw(TEXTS)] = draw(ODD)
    return tree


def as_json(tree):
    """JSON text with whatever JSON cannot hold written as Python does."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


SNIPPETS = st.sampled_from(
    [
        *(b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\n", b"\n\n", b"\x1b", b"\xed\xa0\x80"),
        *(b"\\ud800", b"\\u0000", b"[" * 2000, b"{" * 500, b"9" * 5000, b'"', b"'", b": ", b"- ", b"&a ", b"*a "),
        *(b"!!python/name:os.system ", b"<<: ", b"NaN", b"Infinity", b"1e999", b"null", b"true", b"%", b"#", b"---\n"),
        *(b"x" * 3000, b"../../x", b"\t", b","),
    ]
)


@st.composite
def edited(draw, content, most=3):
    """Bytes with up to ``most`` edits: flipped, cut, filled in, cut short."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.integers(0, len(content)))
        act = draw(st.sampled_from(["flip", "cut", "fill", "fill", "short", "noise"]))
        if act == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif act == "cut":
            del content[place : place + draw(st.integers(1, 40))]
        elif act == "short":
            del content[place:]
        elif act == "noise":
            content[place:place] = draw(st.binary(max_size=20))
        else:
            content[place:place] = draw(SNIPPETS)
    return bytes(content)
