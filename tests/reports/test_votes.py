"""``flowopd vote``: pairs, the file of votes, the page in a browser, and the report."""

import json
import re
import shutil
import threading
import urllib.error
import urllib.request

import pytest
from support import reported

from flowopd_cli.errors import ArtifactError, RecipeError, StorageError
from flowopd_cli.reports import vote_page
from flowopd_cli.reports.entries import collect
from flowopd_cli.reports.vote_page import Server, Session
from flowopd_cli.reports.votes import figures, pairs, read_votes

COUNT = 6
HOSTILE = '<img src=x onerror="document.title=1">'


def evaluation(path, made=None, count=COUNT, **protocol):
    """An evaluation with pictures of its own color, one for each of ``count`` prompts."""
    run = reported.evaluation(path, made, {"ocr": 0.5}, **protocol)
    rows = []
    for index in range(count):
        name = f"ocr/samples/{index:05d}_000.png"
        file = run.images_dir / name
        file.parent.mkdir(parents=True, exist_ok=True)
        reported.noise(1, 16, len(path.name)).save(file)
        facts = {"task": "ocr", "prompt": f"{index:05d}", "text": f"{HOSTILE} {index}", "index": 0}
        rows.append({**facts, "tag": "", "value": 0.5, "picture": name})
    run.write_rows("ocr", rows)
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two teachers and the evaluations of the base and of both."""
    root = tmp_path_factory.mktemp("votes")
    one, two = reported.teacher(root / "one"), reported.teacher(root / "two")
    for name, model in {"e-base": None, "e-teacher-one": one, "e-two": two}.items():
        evaluation(root / name, model)
    return root


@pytest.fixture
def runs(made, tmp_path):
    """The three evaluations in a copy of that folder."""
    shutil.copytree(made, tmp_path / "runs")
    return [tmp_path / "runs" / name for name in ("e-base", "e-teacher-one", "e-two")]


@pytest.fixture
def session(runs, tmp_path):
    return Session(pairs(runs[:2], 0, ""), tmp_path / "votes.jsonl", "")


@pytest.fixture
def server(session):
    with Server(session, 0) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def choose(session, *choices):
    for choice in choices:
        session.answer(session.state()["number"], choice)


def sides(found):
    return [(pair.prompt, pair.left.run, pair.right.run) for pair in found]


def test_pairs_are_shuffled_by_seed_and_voter_whatever_the_order_of_runs(runs):
    found = pairs(runs, 0, "")
    assert len(found) == 3 * COUNT
    assert sides(pairs(runs[::-1], 0, "")) == sides(found)
    assert sides(pairs(runs, 1, "")) != sides(found) != sides(pairs(runs, 0, "ann"))
    assert sorted(pair.key for pair in pairs(runs, 1, "")) == sorted(pair.key for pair in found)
    of_two = [pair for pair in found if "e-two" not in (pair.left.run, pair.right.run)]
    assert sides(pairs(runs[:2], 0, "")) == sides(of_two)  # a further run changes no other pair
    assert {pair.left.run for pair in found} == {path.name for path in runs}
    for pair, (left, right) in found.items():
        assert left.name == right.name == f"{pair.prompt}_000.png"
        assert (left.parts[-5], right.parts[-5]) == (pair.left.run, pair.right.run)


def test_a_training_run_stands_for_its_evaluation(runs, tmp_path):
    assert sides(pairs([tmp_path / "runs" / "one", tmp_path / "runs" / "two"], 0, "")) == sides(pairs(runs[1:], 0, ""))


def test_an_adapter_at_two_numbers_of_steps_is_two_models(runs):
    few = evaluation(runs[0].parent / "f", steps=4).path
    found = pairs([runs[0], few], 0, "")
    assert {frozenset((pair.left.steps, pair.right.steps)) for pair in found} == {frozenset((4, 40))}
    votes_of([runs[0], few], lambda left, right: "left" if left == "f" else "right")
    [row] = figures(collect([runs[0], few]), read_votes(few.parent / "votes.jsonl"))["pairs"]
    assert (row["model"], row["other"], row["wins"]) == ("base (2)", "base", COUNT)


@pytest.mark.parametrize("protocol", [{"seed": 7}, {"guidance": 3}, {"count": 0}])
def test_models_without_common_pictures_are_refused(runs, tmp_path, protocol):
    other = evaluation(tmp_path / "f", reported.teacher(tmp_path / "three"), **protocol)
    with pytest.raises(ArtifactError, match="no two models have pictures of the same prompt, seed, guidance"):
        pairs([runs[0], other.path], 0, "")


def test_one_model_twice_and_a_run_without_evaluation_are_refused(runs, tmp_path):
    with pytest.raises(ArtifactError, match="no two models"):
        pairs([runs[0], evaluation(tmp_path / "again").path], 0, "")
    lonely = reported.teacher(tmp_path / "lonely").path
    with pytest.raises(ArtifactError, match="lonely: has no evaluation; make one with: flowopd eval --adapter"):
        pairs([runs[0], lonely], 0, "")


def test_the_pictures_of_a_run_must_lie_inside_it(runs):
    rows = runs[0] / "eval" / "ocr.jsonl"
    rows.write_text(rows.read_text().replace("ocr/samples/00002", "../../e-two/images/ocr/samples/00002"))
    with pytest.raises(ArtifactError, match="is not the name of a file in it"):
        pairs(runs, 0, "")


def test_a_session_goes_on_where_the_last_one_ended(runs, session, tmp_path):
    order = [pair for pair, _ in session.pairs]
    choose(session, "left", "skip", "tie")
    file = tmp_path / "votes.jsonl"
    assert [(vote.prompt, vote.choice) for vote in read_votes(file)] == [
        (order[0].prompt, "left"),
        (order[2].prompt, "tie"),
    ]
    row = json.loads(file.read_text().splitlines()[0])
    assert row["text"] == order[0].text
    assert row["left"] == order[0].left.model_dump()
    with file.open("a") as handle:
        handle.write('{"suite": "oc')  # killed in the middle of a line
    again = Session(pairs(runs, 5, ""), file, "")
    assert again.vote_count == 2
    shown = [again.pairs[number][0].key for number in again._open]
    assert len(shown) == 16
    assert {order[0].key, order[2].key}.isdisjoint(shown)
    choose(again, "right")
    assert len(read_votes(file)) == 3
    assert Session(pairs(runs, 0, "ann"), file, "ann").vote_count == 0


def test_undo_takes_the_last_votes_of_the_session_back(session, tmp_path):
    first = session.state()
    assert first["undo"] is False
    choose(session, "undo")
    assert session.state() == first
    choose(session, *["right"] * COUNT)
    assert (session.state()["number"], session.vote_count) == (None, COUNT)
    choose(session, "left", "skip")
    choose(session, *["undo"] * COUNT, "left")
    assert [vote.choice for vote in read_votes(tmp_path / "votes.jsonl")] == ["left"]
    assert session.vote_count == 1


def test_an_answer_to_a_pair_that_is_not_shown_has_no_effect(session):
    number = session.state()["number"]
    session.answer(number, "left")
    session.answer(number, "left")
    assert session.vote_count == 1


def test_a_vote_that_cannot_be_written_leaves_its_pair_open(session, monkeypatch):
    def fail(file, vote):
        raise StorageError("no space")

    monkeypatch.setattr(vote_page, "record", fail)
    before = session.state()
    with pytest.raises(StorageError, match="no space"):
        choose(session, "left")
    assert session.state() == before


@pytest.mark.parametrize("line", ['{"iteration": 1}\n', '{"choice": "left", "voter": 3}\n'])
def test_another_file_is_refused(runs, flowopd, tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line)
    code, out, err = flowopd("vote", *runs, "--out", tmp_path / "metrics.jsonl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "metrics.jsonl:1: is no vote" in err
    assert (tmp_path / "metrics.jsonl").read_text() == line


def test_what_is_no_request_of_the_page_is_refused(server, capfd):
    number = server.session.state()["number"]
    for address in ("picture/99/left", "picture/x/left", f"picture/{number}/up"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.address + address)
    for content in (b"", b"{}", b"[]", b"no JSON"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{server.address}answer", data=content)
    assert server.session.state()["number"] == number
    server.session.pairs[number][1][0].unlink()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.address}picture/{number}/left")
    assert capfd.readouterr().err == ""


def test_the_secret_is_needed_for_every_address(server):
    root = f"http://127.0.0.1:{server.server_port}"
    assert server.server_address[0] == "127.0.0.1"
    for address in (root, f"{root}/", f"{root}/answer", f"{root}/x/picture/0/left"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{root}/x/answer", data=b"{}")
    with urllib.request.urlopen(server.address) as page:
        text = page.read().decode()
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'; img-src 'self'")
    assert not re.search(r"https?:|//", text)
    with pytest.raises(RecipeError, match=f"--port {server.server_port}: .*; choose another"):
        Server(server.session, server.server_port)


def test_a_browser_votes_by_keys_without_seeing_the_models(server, chromium, tmp_path):
    chromium.show(server.address, 1440)
    shown = "!document.getElementById('left').hidden"
    for key, given in [("ArrowLeft", 1), ("ArrowRight", 2), ("u", 1), ("ArrowDown", 2), ("s", 2), ("ArrowRight", 3)]:
        number = server.session.state()["number"]
        chromium.wait(f"{shown} && number === {number} && !busy")
        assert chromium.value("[...document.images].every(i => i.naturalWidth === 16 && i.className === 'small')")
        assert chromium.value("document.getElementById('text').textContent") == server.session.state()["text"]
        chromium.press(key)
        chromium.wait("!busy")
        assert server.session.vote_count == given
    votes = read_votes(tmp_path / "votes.jsonl")
    assert [vote.choice for vote in votes] == ["left", "tie", "right"]
    assert not re.search("e-base|e-teacher|b{16}", chromium.value("document.documentElement.outerHTML"))
    requests = {error.removeprefix("requested ").removeprefix(server.address) for error in chromium.errors}
    assert {re.sub(r"\d+", "N", request) for request in requests} == {"", "answer", "picture/N/left", "picture/N/right"}
    for left in range(COUNT - 3, 0, -1):
        chromium.wait("!busy")
        assert server.session.vote_count == COUNT - left
        chromium.press("ArrowLeft")
    chromium.wait("number === null && !busy")
    assert server.session.vote_count == COUNT
    chromium.press("q")
    chromium.wait("document.body.textContent.includes('stored')")


def votes_of(runs, choose_of):
    """Vote on every pair of the runs: ``choose_of(left, right)`` by the names of the runs."""
    session = Session(pairs(runs, 0, ""), runs[0].parent / "votes.jsonl", "")
    while (number := session.state()["number"]) is not None:
        pair, _ = session.pairs[number]
        session.answer(number, choose_of(pair.left.run, pair.right.run))


def test_a_report_has_the_ratings_of_votes_beside_the_runs(runs, flowopd, tmp_path):
    votes_of(runs, lambda left, right: "tie" if "e-two" in (left, right) else "left" if left == "e-base" else "right")
    code, out, err = flowopd("report", *runs, "--out", tmp_path / "c", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["votes"]
    assert [row["model"] for row in found["ratings"]] == ["base", "two", "one"]
    lead = found["ratings"][0]["rating"] - 1500
    assert [row["rating"] - 1500 for row in found["ratings"]] == pytest.approx([lead, 0, -lead])
    expected = 7 / (1 + 10 ** (-lead / 400)) + 7 / (1 + 10 ** (-2 * lead / 400))  # of the base against both
    assert expected == pytest.approx(6 + 6 / 2 + 2 * 0.5)
    by_pair = {(r["model"], r["other"]): [r[name] for name in ("wins", "ties", "losses")] for r in found["pairs"]}
    assert by_pair == {("base", "two"): [0, 6, 0], ("base", "one"): [6, 0, 0], ("two", "one"): [0, 6, 0]}
    texts = reported.Tags((tmp_path / "c" / "report.html").read_text(encoding="utf-8")).texts
    assert {"Votes of people", "Ratings"} <= {*texts}


def test_votes_count_in_a_comparison_of_their_models_alone(runs, flowopd, tmp_path):
    votes_of(runs[:2], lambda left, right: "left" if left == "e-base" else "right")
    mine = (runs[0].parent / "votes.jsonl").rename(tmp_path / "mine.jsonl")
    assert figures(collect(runs)[1:], read_votes(mine)) == {"ratings": [], "pairs": []}
    _, out, _ = flowopd("report", *runs, "--out", tmp_path / "c", "--json")
    assert json.loads(out)["votes"]["pairs"] == []
    _, out, _ = flowopd("report", *runs, "--out", tmp_path / "c", "--votes", mine, "--json")
    [row] = json.loads(out)["votes"]["pairs"]
    assert (row["model"], row["other"], row["wins"], row["win_rate"]) == ("base", "one", COUNT, 1)
    code, _, err = flowopd("report", *runs, "--votes", tmp_path / "none.jsonl")
    assert (code, err) == (2, f"flowopd: error: --votes {tmp_path}/none.jsonl: no such file; flowopd vote makes one\n")
    code, _, err = flowopd("report", runs[0], "--votes", mine)
    assert (code, err) == (2, "flowopd: error: --against and --votes compare several runs; name two or more\n")


def test_models_that_no_chain_of_votes_connects_have_win_rates_alone(runs, tmp_path):
    made = [
        evaluation(tmp_path / name, reported.teacher(tmp_path / f"t-{name}"), guidance=3).path
        for name in ("e-3", "e-4")
    ]
    votes_of([*runs[:2], *made], lambda left, right: "left")
    found = figures(collect([*runs, *made]), read_votes(runs[0].parent / "votes.jsonl"))
    assert (found["ratings"], len(found["pairs"])) == ([], 2)


def served(monkeypatch, act):
    """Replace the loop of the server by ``act(session)``."""
    monkeypatch.setattr(Server, "serve_forever", lambda server: act(server.session))


def test_stdout_has_the_path_of_the_votes(runs, flowopd, monkeypatch, tmp_path):
    served(monkeypatch, lambda session: choose(session, "left", "tie"))
    code, out, err = flowopd("vote", *runs, "--name", "ann")
    file = runs[0].parent / "votes.jsonl"
    assert (code, out) == (0, f"{file}\n")
    assert re.search(r"0 of 18 pairs have a vote; the page: http://127\.0\.0\.1:\d+/[0-9a-f]{32}/\n", err)
    code, out, _ = flowopd("vote", *runs, "--json", "--out", tmp_path / "new" / "v.jsonl")
    assert json.loads(out) == {"votes": str(tmp_path / "new" / "v.jsonl"), "given": 2, "pairs": 18}
    assert {vote.voter for vote in read_votes(file)} == {"ann"}


def test_ctrl_c_keeps_the_votes(runs, flowopd, monkeypatch):
    def act(session):
        choose(session, "left", "right")
        raise KeyboardInterrupt

    served(monkeypatch, act)
    code, out, err = flowopd("vote", *runs)
    assert (code, out) == (130, "")
    assert f"2 of 18 pairs have a vote, in {runs[0].parent / 'votes.jsonl'}" in err
    assert len(read_votes(runs[0].parent / "votes.jsonl")) == 2
