"""The figures of ``--dry-run``, each derived by hand beside its assert."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.models.files.workload import AtHand
from flowopd_cli.recipe.cost import arithmetic, optimizer_steps, trained_steps, updates, workload

TRAIN = {"iterations": 5, "groups": 8, "group_size": 12, "updates": 2, "micro": 10, "rollout_batch": 32}


COLDSTART = {"stage": "coldstart", "prompts": [{"source": "toy:ocr"}], "teachers": {"ocr": {"ref": "base"}}}


def teacher(**sections):
    data = {"stage": "teacher", "prompts": [{"source": "toy:geneval"}], "rewards": [{"name": "geneval"}]}
    return recipes.build({**data, "train": TRAIN, "sampling": {"steps": 10, "guidance": 4.5}, **sections})


def distill(**sections):
    data = {"stage": "distill", "prompts": [{"source": "toy:geneval"}], "routing": {"geneval": {"ref": "runs/t"}}}
    return recipes.build({**data, "train": TRAIN, "sampling": {"steps": 10, "guidance": 1.0}, **sections})


def test_teacher():
    figures = arithmetic(teacher())
    assert figures["pictures per iteration"] == 96  # 8 groups x 12
    assert figures["rollout batches per process"] == 3  # 96 / 32
    assert figures["trained steps per picture"] == 9  # all but the last, which arrives at sigma 0
    assert figures["rows per optimizer step"] == 432  # 96 / 2 updates x 9 steps
    assert figures["micro-batches per optimizer step"] == 44  # ceil(432 / 10)
    assert figures["optimizer steps"] == 10  # 5 iterations x 2 updates
    # guidance doubles: rollout 10 x 2, reference for the KL 9 x 2, learning 9 x 2
    assert figures["transformer forwards per picture"] == 20 + 18 + 18
    assert figures["transformer forwards in all"] == 56 * 96 * 5


def test_an_iteration_makes_no_more_optimizer_steps_than_it_has_pictures():
    assert updates(teacher()) == 2
    assert updates(teacher(train={**TRAIN, "groups": 1, "group_size": 3, "updates": 2})) == 2  # 2 and 1 pictures
    assert updates(teacher(train={**TRAIN, "groups": 1, "group_size": 2, "updates": 5})) == 2
    assert updates(recipes.build({**COLDSTART, "train": TRAIN})) == 1


def test_watched_pictures_are_counted_apart():
    watch = {"groups": 3, "group_size": 2}
    assert arithmetic(teacher(watch=watch, train={**TRAIN, "watch_every": 2}))["pictures watched"] == 24  # 0, 2, 4, 5
    assert "pictures watched" not in arithmetic(teacher(watch=watch))


ONE = {**TRAIN, "updates": 1}


def parts(make=distill, **sections):
    return arithmetic(make(**sections))["of these rollout / labels / learning"]


def test_labels_are_those_of_reference_teacher_and_anchor():
    assert parts(teacher, grpo={"beta": 0}) == "20 / 0 / 18"  # no KL, no reference
    # own guidance 1: rollout 10, learning 9; labels 9 x (2 guided teacher + 1 anchor)
    guided = {"geneval": {"ref": "base", "guidance": 4.5}}
    assert parts(routing=guided, anchor={"beta": 0.02}) == "10 / 27 / 9"
    assert parts(anchor={"beta": 0}) == "10 / 9 / 9"


@pytest.mark.parametrize(
    ("algorithm", "train", "expected"),
    [
        ({"algorithm": "nft"}, TRAIN, "10 / 18 / 9"),  # slow copy and base at 9 levels
        ({"algorithm": "nft", "nft": {"base_weight": 0}}, TRAIN, "10 / 9 / 9"),
        ({"algorithm": "awm"}, ONE, "10 / 12 / 6"),  # 6 levels
        ({"algorithm": "nft", "nft": {"slow_most": 0}}, ONE, "10 / 9 / 9"),  # a copy that equals the policy
        ({"algorithm": "nft", "nft": {"slow_rate": 0, "base_weight": 0}}, ONE, "10 / 0 / 9"),
        ({"algorithm": "awm"}, TRAIN, "10 / 18 / 6"),  # and the likelihoods before the first of two updates
    ],
)
def test_the_forward_process_labels_and_learns_noise_levels(algorithm, train, expected):
    sampling = {"steps": 10, "guidance": 1.0, "kernel": "ode"}
    assert parts(teacher, **algorithm, train=train, sampling=sampling) == expected
    figures = arithmetic(teacher(**algorithm, sampling=sampling))
    assert figures["noise levels per picture"] == int(expected.split()[-1])
    assert "trained steps per picture" not in figures


def test_extrapolation_adds_the_bases_forward_unless_the_anchor_has_it():
    beyond = {"extrapolate": 1.25}
    assert parts(opd=beyond, anchor={"beta": 0}) == "10 / 18 / 9"
    assert parts(opd=beyond, anchor={"ref": "runs/q"}) == "10 / 27 / 9"
    assert parts(opd=beyond) == "10 / 18 / 9"  # the anchor is the base
    assert parts(train=ONE, opd=beyond, anchor={"every": 4}) == "0 / 18 / 9"  # it is needed at every step anyway
    assert parts(opd=beyond, anchor={"guidance": 2.0}) == "10 / 36 / 9"  # and guided again: two more
    assert parts(opd=beyond, routing={"geneval": {"ref": "base"}}, anchor={"beta": 0}) == "10 / 9 / 9"
    replay, fused = (workload(distill(opd=beyond, train=train, anchor={"beta": 0})) for train in (TRAIN, ONE))
    assert replay.latents == 96 * (1 + 10 * 3)  # state, teacher, base
    assert fused.latents == 5 * 10  # and the policy's velocity; the place of an anchor


def test_substeps_multiply_the_labels_and_share_no_forward_of_the_base():
    average = {"teacher_substeps": 3}
    assert parts(opd=average, anchor={"beta": 0}) == "10 / 27 / 9"
    assert parts(opd=average) == "10 / 54 / 9"  # teacher and anchor
    assert parts(opd={**average, "extrapolate": 1.25}) == "10 / 81 / 9"  # the walk of the target leaves the anchor's
    assert parts(train=ONE, opd=average, anchor={"every": 2}) == "0 / 40.5 / 9"
    large = {"ref": "base", "base": "stabilityai/stable-diffusion-3.5-large", "guidance": 3.5}
    figures = arithmetic(distill(routing={"geneval": large}, anchor={"beta": 0}, opd=average))
    assert figures["of the labels by teachers' own bases, at most"] == 54
    assert workload(distill(opd=average, train=ONE)).latents == 4 * 10 + workload(distill(train=ONE)).latents


def test_one_pass_makes_no_forward_for_the_rollout_alone():
    figures = arithmetic(distill(train=ONE))
    assert (figures["schedule"], arithmetic(distill())["schedule"]) == ("fused", "replay")
    assert figures["of these rollout / labels / learning"] == "0 / 18 / 9"  # 9 x (teacher + anchor), 9 to learn
    assert figures["rollout batches per process"] == 0
    assert figures["micro-batches per optimizer step"] == 90  # ceil(96 / 10) at each of 9 steps
    assert parts(train=ONE, opd={"schedule": "replay"}) == "10 / 18 / 9"
    logged = {"opd": {"log_rewards_every": 4}, "rewards": [{"name": "ocr"}]}
    assert parts(train=ONE, **logged) == "0.25 / 18 / 9"  # the tenth step in every fourth iteration


def test_what_teaches_less_costs_less():
    assert parts(train=ONE, anchor={"every": 4}) == "0 / 11.25 / 9"  # 9 x (1 + 1/4)
    assert parts(train=ONE, anchor={"probability": 0.5}) == "0 / 13.5 / 9"
    few = {**ONE, "query": {"steps": 4}}
    assert parts(train=few) == "4 / 8 / 4"  # the last of 4 among 9 is the 8th on average: 4 x 10 / 5
    assert parts(train={**few, "updates": 2}) == "10 / 8 / 4"
    assert arithmetic(distill(train={**ONE, "query": {"steps": 50}}))["trained steps per picture"] == 9
    assert parts(teacher, train=few) == "20 / 8 / 8"
    late = {**ONE, "query": {"steps": 1, "law": "beta(1, 2)"}}
    # chances 17/81, 15/81, ..., 1/81: the index of the step is 0 x 17/81 + 1 x 15/81 + ... + 8 x 1/81 = 204/81
    assert parts(train=late) == "2.52 / 2 / 1"
    window = {"steps": 10, "guidance": 1.0, "window": {"size": 2, "start_max": 4}}
    assert parts(train=ONE, sampling=window) == "10 / 4 / 2"
    assert parts(train=ONE, sampling=window, opd={"schedule": "fused"}) == "2 / 4 / 2"  # starts at 2 on average


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"steps": 10}, 9),
        ({"steps": 10, "window": {"size": 3, "start_max": 5}}, 3),
        ({"steps": 8, "window": {"size": 2, "start_min": 6, "start_max": 6}}, 1),
        ({"steps": 8, "window": {"size": 2, "start_min": 5, "start_max": 5}}, 2),
        ({"steps": 10, "kernel": "ode", "window": {"size": 3}}, 9),
        ({"steps": 1, "kernel": "ode"}, 1),
    ],
)
def test_trained_steps(sampling, expected):
    assert trained_steps(distill(sampling=sampling).sampling) == expected


@pytest.mark.parametrize("window", [None, {"size": 1}, {"size": 2}, "late"])
@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize(("kernel", "eta"), [("flow_sde", 0.7), ("flow_sde", 0), ("cps", 0.7), ("ode", 0.7)])
def test_trained_steps_are_those_that_collection_trains(kernel, eta, steps, window):
    torch = pytest.importorskip("torch")
    from flowopd_cli.core.sampler import Sampler
    from flowopd_cli.core.sampler import trained_steps as learned_steps
    from flowopd_cli.core.steps import make_kernel

    if window == "late":
        window = {"size": 2, "start_min": steps - 2, "start_max": steps - 2}
    sampling = distill(sampling={"steps": steps, "kernel": kernel, "eta": eta, "window": window}).sampling
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    start = 0 if window is None else window.get("start_min", 0)
    range_ = None if window is None else (start, start + window["size"])
    sampler = Sampler(sigmas, make_kernel(kernel, eta, sigmas), 1.0, range_)
    assert trained_steps(sampling) == len(learned_steps(sampler).steps)


@pytest.mark.parametrize(
    ("pictures", "updates", "expected"),
    [(96, 2, (2, 48)), (5, 4, (3, 2)), (3, 8, (3, 1)), (7, 1, (1, 7))],
)
def test_pictures_are_dealt_to_optimizer_steps_as_torch_chunks_them(pictures, updates, expected):
    torch = pytest.importorskip("torch")
    chunks = torch.arange(pictures).chunk(updates)
    assert optimizer_steps(pictures, updates) == expected == (len(chunks), len(chunks[0]))


def test_processes_share_the_pictures_of_the_same_optimizer_steps():
    figures = arithmetic(teacher(train={**TRAIN, "processes": 4}))
    assert figures["rollout batches per process"] == 1  # 2 groups x 12 of 8 x 12, in batches of 32
    assert figures["rows per optimizer step"] == 432  # as with one process
    assert figures["micro-batches per optimizer step"] == "about 11 per process"  # 432 / 4 / 10
    assert figures["optimizer steps"] == 10
    few = {**TRAIN, "groups": 3, "group_size": 4, "updates": 3, "processes": 2, "rollout_batch": 4}
    figures = arithmetic(teacher(train=few))
    assert (
        figures["rollout batches per process"] == 2
    )  # whole groups: two of 4 for the first process, one for the second
    assert figures["optimizer steps"] == 15  # 5 iterations x 3, on either


def test_coldstart():
    data = {"stage": "coldstart", "prompts": [{"source": "toy:ocr"}], "teachers": {"ocr": {"ref": "base"}}}
    sft = {"samples": 20, "batch": 64}
    figures = arithmetic(recipes.build({**data, "train": TRAIN, "sft": sft, "sampling": {"steps": 10}}))
    assert figures["teacher pictures drawn"] == 288  # ceil(20 / 8) rounds x 8 groups x 12
    assert figures["teacher pictures kept"] == 24  # 3 rounds x 8 groups
    assert figures["transformer forwards to draw"] == 288 * 10 * 2
    assert figures["micro-batches per optimizer step"] == 7  # ceil(64 / 10)
    assert figures["optimizer steps"] == 5
    two = recipes.build({**data, "train": {**TRAIN, "processes": 2}, "sft": sft})
    assert arithmetic(two)["micro-batches per optimizer step"] == 4  # ceil(32 / 10)


def test_stages_without_a_loop():
    evaluation = recipes.build({"stage": "eval", "eval": {"steps": 40, "guidance": 4.5, "limit": 9}})
    assert arithmetic(evaluation)["transformer forwards per picture"] == 80
    assert arithmetic(evaluation)["prompts per suite"] == "at most 9"
    several = recipes.build({"stage": "eval", "eval": {"steps": 40, "guidance": [1, 1.5, 1]}})
    assert arithmetic(several)["transformer forwards per picture"] == "40 + 80"
    merge = recipes.build({"stage": "merge", "adapters": ["a", "b"]})
    assert arithmetic(merge) == {"adapters": 2, "optimizer steps": 0}
    assert arithmetic(recipes.build({"stage": "push", "run": "r"})) == {"optimizer steps": 0}


def test_a_teachers_own_base_labels_by_its_own_guidance():
    flux = {"ref": "base", "base": "black-forest-labs/FLUX.1-dev", "family": "flux", "guidance": 3.5}
    figures = arithmetic(distill(routing={"geneval": flux}, anchor={"beta": 0}))
    assert figures["of these rollout / labels / learning"] == "10 / 9 / 9"  # FLUX takes guidance in one forward
    assert figures["of the labels by teachers' own bases, at most"] == 9
    train = {**TRAIN, "rollout_batch": 8}
    own, beyond = (
        workload(distill(routing={"geneval": flux}, train=train, opd=opd)) for opd in ({}, {"extrapolate": 2})
    )
    assert (own.sampling_rows, beyond.sampling_rows) == (8, 16)  # the student's base is guided as its teachers
    large = {"ref": "base", "base": "stabilityai/stable-diffusion-3.5-large", "guidance": 3.5}
    figures = arithmetic(distill(routing={"geneval": large, "ocr": {"ref": "base"}}))
    assert figures["of these rollout / labels / learning"] == "10 / 27 / 9"  # 9 x (2 of the teacher + 1 of the anchor)
    assert figures["of the labels by teachers' own bases, at most"] == 18


@pytest.mark.parametrize(
    ("copies", "algorithm", "device", "host"),
    [("device", "grpo", 2, 0), ("device", "nft", 3, 0), ("cpu", "grpo", 1, 1), ("cpu", "awm", 1, 2)],
)
def test_copies_of_trained_weights_count_where_they_are(copies, algorithm, device, host):
    settings = {"adapter": {"kind": "full", "copies": copies}, "algorithm": algorithm}
    settings |= {"sampling": {"kernel": "ode" if algorithm != "grpo" else "flow_sde", "guidance": 1.0}}
    work, on_cpu = (workload(teacher(model={"device": name}, **settings)) for name in ("cuda", "cpu"))
    assert (work.adapters, work.trained, work.hosted) == (0, device, host)
    assert (on_cpu.trained, on_cpu.hosted) == (device + host, 0)  # the host's memory is the device's


def test_adapters_at_hand_count_by_their_own_size():
    roles = {"geneval": {"ref": "runs/a"}, "ocr": {"ref": "runs/b"}, "deqa": {"ref": "runs/c"}}
    at_hand = AtHand({"runs/a": 500}, frozenset({"runs/b"}))
    work = workload(distill(routing=roles, anchor={"ref": "runs/a"}), at_hand)
    assert (work.adapters, work.known, work.models) == (1 + 2, 500 + 500, 1)  # policy, average; the anchor is its own
    assert workload(distill(routing=roles, adapter={"kind": "full"}), at_hand).adapters == 1
