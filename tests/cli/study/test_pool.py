"""The runs of a study in processes: order, claims, failures, what is kept, the CPU time."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flowopd_cli.cli.study import pool
from flowopd_cli.cli.study.grid import expand
from flowopd_cli.cli.study.pool import Pool, cpu_seconds
from flowopd_cli.recipe import load_study
from flowopd_cli.reports.watch import View
from flowopd_cli.runs.inspect import standing
from flowopd_cli.runs.lock import Lock


def nodes_of(place):
    return list(expand(load_study(place.file), "study.yaml").nodes.values())


def run(place, jobs=1, nodes=None):
    """Make the runs; the outcomes, and the lines."""
    lines = []
    return Pool(place.store, jobs, lines.append).run(nodes or nodes_of(place), "again"), lines


def test_every_run_is_made_once_parents_first(place):
    outcomes, lines = run(place, jobs=2)
    assert set(outcomes.values()) == {"done"}
    order = [name for _, name, _ in place.calls()]
    assert sorted(order) == sorted(outcomes)
    for node in nodes_of(place):
        assert all(order.index(parent) < order.index(node.name) for parent in node.parents)
        assert standing(place.store / node.name) == "done"
    assert len(lines) == 10
    assert "5 of 5)" in lines[-1]
    place.forget_calls()
    assert set(run(place)[0].values()) == {"done"}
    assert place.calls() == []


def test_an_edited_grid_makes_only_what_is_new(place):
    run(place)
    place.forget_calls()
    place.write(axes={"lambda": [1, 2, 3]})
    run(place)
    assert [name.partition("-")[0] for _, name, _ in place.calls()] == ["distill", "eval"]


def test_a_failed_run_does_not_stop_the_others(place):
    place.order(extrapolate_1="fail")
    outcomes, _ = run(place)
    teacher, failed, skipped, *others = outcomes.values()
    assert failed == "failed, exit code 1: flowopd: error: it was told to fail"
    assert skipped == f"skipped, because {list(outcomes)[1]} failed"
    assert {teacher, *others} == {"done"}
    place.order()
    place.forget_calls()
    assert set(run(place)[0].values()) == {"done"}
    assert [(how, name.partition("-")[0]) for how, name, _ in place.calls()] == [
        ("resume", "distill"),
        ("start", "eval"),
    ]


def test_a_skipped_run_names_the_one_that_failed(place):
    place.order(seed_0="fail")
    teacher, *others = run(place)[0].items()
    assert teacher[1].startswith("failed")
    assert {text for _, text in others} == {f"skipped, because {teacher[0]} failed"}


def test_a_killed_run_is_a_failure_and_is_resumed_by_the_next_call(place):
    node = nodes_of(place)[0]
    place.order(seed_0="die")
    outcomes, _ = run(place, nodes=[node])
    assert outcomes == {node.name: "failed, killed by signal 9"}
    place.order()
    assert run(place, nodes=[node])[0] == {node.name: "done"}
    assert [how for how, _, _ in place.calls()] == ["start", "resume"]
    assert len(cpu_seconds(place.store / node.name)) == 2


def test_the_cpu_time_is_that_of_the_process(place, monkeypatch):
    node = nodes_of(place)[0]
    busy = "import resource\nwhile sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) < 0.4: pass\n"
    program = place.file.with_name("busy.py")
    program.write_text(busy + Path(pool.PROGRAM[-1]).read_text(encoding="utf-8"))
    monkeypatch.setattr(pool, "PROGRAM", (str(program),))
    monkeypatch.setattr(pool, "RECORD", 0.01)
    run(place, nodes=[node])
    (seconds,) = cpu_seconds(place.store / node.name)
    assert 0.4 <= seconds < 1.5


def test_runs_at_the_same_time_are_at_most_the_jobs(place):
    place.write(seeds=[0, 1, 2])
    teachers = [node for node in nodes_of(place) if node.stage == "teacher"]
    place.order(stage="1.5")  # longer than the start of a process on a busy machine
    run(place, jobs=2, nodes=teachers)
    starts = sorted(float(at) for _, _, at in place.calls())
    ends = sorted(float(line.split()[1]) for line in (place.store / "ends").read_text().splitlines())
    assert starts[1] < ends[0] < starts[2]


def test_two_studies_at_the_same_time_make_each_run_once(place):
    place.order(stage="0.1")
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(place))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [set(outcomes.values()) for outcomes, _ in results] == [{"done"}] * 2
    assert sorted(name for _, name, _ in place.calls()) == sorted(node.name for node in nodes_of(place))
    assert any("waiting for another process" in line for _, lines in results for line in lines)


def test_a_run_that_another_machine_makes_is_waited_for(place, monkeypatch):
    node = nodes_of(place)[0]
    place.store.mkdir(parents=True)
    lock = Lock(place.store / f"{node.name}.lock")
    note = {"pid": 1, "host": "elsewhere", "machine": "other"}
    lock.path.write_text(json.dumps(note))
    threading.Timer(0.3, lock.path.unlink).start()
    started = time.monotonic()
    assert run(place, nodes=[node])[0] == {node.name: "done"}
    assert time.monotonic() - started > 0.3


def test_damaged_files_of_a_run_are_its_fault_alone(place):
    place.write(seeds=[0, 1])
    node, other = (node for node in nodes_of(place) if node.stage == "teacher")
    (place.store / node.name).mkdir(parents=True)
    (place.store / node.name / "manifest.json").write_text("{")
    outcomes, _ = run(place, nodes=[node, other])
    assert outcomes[other.name] == "done"
    assert "damaged manifest" in outcomes[node.name]


def test_running_trainings_show_their_iteration_and_reward(place, monkeypatch):
    place.write(seeds=[0, 1])
    trained, started = (node for node in nodes_of(place) if node.stage == "teacher")
    place.order(stage="0.5")
    views = {trained.name: View("", "running", done=3, total=50, curves={"loss": [1], "reward": [0.2, 0.5]})}
    monkeypatch.setattr(pool.watch, "look", lambda path: views.get(path.name, View("", "running")))
    lines, began = [], time.monotonic()
    Pool(place.store, 2, lines.append, interval=0.2).run([trained, started], "again")
    found = [line for line in lines if "iteration" in line]
    assert set(found) == {f"{trained.name}: iteration 3 of 50, reward 0.5000"}
    assert len(found) <= (time.monotonic() - began) / 0.2


STUDY = """
import sys
from flowopd_cli.cli.study import pool
pool.PROGRAM = ("-SE", sys.argv.pop(1))
from flowopd_cli.cli.app import main
main()
"""


def study(place):
    """The command in a process of its own."""
    words = [sys.executable, "-c", STUDY, pool.PROGRAM[-1], "study", str(place.file)]
    words += ["--out", str(place.out), "--store", str(place.store)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_calls(place, count):
    deadline = time.monotonic() + 60
    while len(place.calls()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_study_leaves_no_process_and_goes_on_where_it_was(place, number):
    place.order(extrapolate_2="hang")
    process = study(place)
    wait_for_calls(place, 4)  # the last is the student of the second value
    hanging = place.calls()[-1][1]
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    if number == signal.SIGTERM:
        assert f"resume with: flowopd study {place.file} --out {place.out} --store {place.store}" in err
    lock = Lock(place.store / f"{hanging}.lock")
    assert not lock.taken()
    place.order()
    place.forget_calls()
    outcomes, _ = run(place)
    assert set(outcomes.values()) == {"done"}
    assert place.calls()[0][:2] == ["resume", hanging]
    assert len(place.calls()) == 2
