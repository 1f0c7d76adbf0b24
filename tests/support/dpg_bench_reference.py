"""The rules of DPG-Bench's ``compute_dpg_bench.py`` for one process, transcribed: what it asks, counts and prints."""

from collections import defaultdict

import numpy as np


def questions_of(rows):
    """Its ``prepare_dpg_data``; ``rows`` are those of the CSV file."""
    previous, table = "", {}
    for i, row in enumerate(rows):
        if i == 0:
            continue
        item, number = row["item_id"], int(row["proposition_id"])
        parents = [int(part.strip()) for part in row["dependency"].split(",")]
        if item != previous:
            table[item] = {"tuple": {}, "parents": {}, "question": {}}
        table[item]["tuple"][number] = row["tuple"]
        table[item]["parents"][number] = parents
        table[item]["question"][number] = row["question_natural_language"]
        previous = item
    return table


def sample(item, answer, pictures):
    """Its ``compute_dpg_one_sample``: the score of each picture, and the answers' scores about the last one."""
    scores, per_picture, before = {}, [], {}
    for picture in range(pictures):
        for number, question in item["question"].items():
            scores[number] = float(answer(picture, number, question) == "yes")
        before = scores.copy()
        for number, parents in item["parents"].items():
            failed = False
            for parent in parents:
                if parent == 0:
                    continue
                if scores[parent] == 0:
                    failed = True
                    break
            if failed:
                scores[number] = 0
        per_picture.append(sum(scores.values()) / len(scores))
    return per_picture, before


def run(table, answer, pictures=4):
    """Its ``main``: the headline, the shares by category of both levels, and the scores of each item's pictures.

    ``answer(item, picture, number, question)`` is the model's. An item that raises is left out, as there.
    """
    means, by_item, level_2 = [], {}, defaultdict(list)
    for name, item in table.items():
        try:
            scores, last = sample(item, lambda *asked, name=name: answer(name, *asked), pictures)
        except KeyError:
            continue
        by_item[name] = scores
        means.append(sum(scores) / len(scores))
        for number, text in item["tuple"].items():
            level_2[text.split("(")[0].strip()].append(last[number])
    level_1 = defaultdict(list)
    for category, scores in level_2.items():
        level_1[category.split("-")[0].strip()].extend(scores)
    shares = {f"L1 {category}": np.mean(scores) for category, scores in level_1.items()}
    shares |= {f"L2 {category}": np.mean(scores) for category, scores in level_2.items()}
    return np.mean(means), shares, by_item
