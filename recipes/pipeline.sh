#!/usr/bin/env bash
# From a base to a published model: a teacher for each task, a cold start, distillation, evaluation, publication.
#
#   bash pipeline.sh                                  the toy world, two cores; nothing is uploaded
#   SHELF=sd35m VARIANT=-1gpu bash pipeline.sh
#   REPO=me/my-model FAIL_UNDER="geneval=0.7" bash pipeline.sh
#
# Called again it goes on: a stage that is done is kept, one that was interrupted is resumed. The first stage that fails
# ends it with that stage's exit code (README: exit codes). Recipes and routes are checked before the first stage.
# stdout gets the path of the last run and nothing else.
#
#   RUNS        where the runs go (runs)
#   SHELF       whose recipes: toy or sd35m (toy);  VARIANT  behind their names: -1gpu
#   TASKS       tasks with a teacher each (geneval ocr preference; sd35m: geneval ocr pickscore)
#   ANCHOR      the teacher that anchors them (quality; sd35m: deqa)
#   START       merge or coldstart (merge)
#   EVAL_RECIPE, COLDSTART_RECIPE                              other recipes than the shelf's own
#   TEACHER_SET, START_SET, DISTILL_SET, EVAL_SET, PUSH_SET    fields to override: "train.iterations=20 train.lr=1e-4"
#   FAIL_UNDER  bars of the student's evaluation: "geneval=0.7 ocr=0.8"; they count for one that is done, too
#   PROCESSES   devices to work on at once (1)
#   REPO        OWNER/NAME to publish to; without it the folder is written and not uploaded
set -euo pipefail
shopt -s inherit_errexit

RUNS=${RUNS:-runs}
SHELF=${SHELF:-toy}
VARIANT=${VARIANT:-}
START=${START:-merge}
PROCESSES=${PROCESSES:-1}
case $START in
    merge | coldstart) ;;
    *) echo "START=$START: write merge or coldstart" >&2 && exit 2 ;;
esac
if [ "$SHELF" = sd35m ]; then
    TASKS=${TASKS:-geneval ocr pickscore}
    ANCHOR=${ANCHOR:-deqa}
fi
ANCHOR=${ANCHOR:-quality}
read -r -a tasks <<<"${TASKS:-geneval ocr preference}"
if [ "$SHELF" = toy ]; then
    eval_recipe=${EVAL_RECIPE:-toy/eval}
    coldstart_recipe=${COLDSTART_RECIPE:-toy/coldstart}
else
    eval_recipe=${EVAL_RECIPE:-$SHELF/eval-all}
    coldstart_recipe=${COLDSTART_RECIPE:-$SHELF/coldstart-sft$VARIANT}
fi

# The words of a variable, each behind a flag, one a line. A star in one is a star, not the files here.
flags() {
    local flag=$1 word
    local -
    set -f
    for word in $2; do printf '%s\n%s\n' "$flag" "$word"; done
}

# stage NAME COMMAND [FLAG...]: the run of that name, made, gone on with or kept. Prints its path. Bars, and that nothing
# is uploaded, are said again of a run that is there.
stage() {
    local name=$1 run=$RUNS/$1 status word last="" again=()
    shift
    for word in "$@"; do
        if [ "$word" = --dry-run ]; then again+=("$word"); fi
        if [ "$last" = --fail-under ]; then again+=("$last" "$word"); fi
        last=$word
    done
    status=$(flowopd runs status "$run")
    echo "== $name: $status" >&2
    case $status in
        absent) flowopd "$@" --out "$run" ;;
        unbegun) flowopd "$@" --out "$run" --force ;;
        *) flowopd "$1" --resume "$run" "${again[@]}" ;; # of a run that is done it prints the path again
    esac
}

mapfile -t teacher_set < <(flags --set "${TEACHER_SET:-}")
mapfile -t start_set < <(flags --set "${START_SET:-}")
mapfile -t distill_set < <(flags --set "${DISTILL_SET:-}")
mapfile -t eval_set < <(flags --set "${EVAL_SET:-}")
mapfile -t push_set < <(flags --set "${PUSH_SET:-}")
mapfile -t bars < <(flags --fail-under "${FAIL_UNDER:-}")
many=(--processes "$PROCESSES")

# What would else show hours later: a recipe that is not there, a task without prompts or prompts without a teacher.
recipes=("$SHELF/distill$VARIANT" "$eval_recipe") pretended=()
for task in "${tasks[@]}" "$ANCHOR"; do
    recipes+=("$SHELF/teacher-$task$VARIANT")
    if [ "$task" != "$ANCHOR" ]; then pretended+=(--teacher "$task=base"); fi
done
if [ "$START" = merge ]; then recipes+=("$SHELF/merge"); else recipes+=("$coldstart_recipe"); fi
for recipe in "${recipes[@]}"; do flowopd recipes show "$recipe" >/dev/null; done
flowopd distill --recipe "$SHELF/distill$VARIANT" --init base --anchor base "${pretended[@]}" "${distill_set[@]}" \
    --dry-run --quiet >/dev/null

# Teachers.
routes=() teachers=()
for task in "${tasks[@]}" "$ANCHOR"; do
    recipe=$SHELF/teacher-$task$VARIANT
    teacher=$(stage "teacher-$task" teacher --recipe "$recipe" "${many[@]}" "${teacher_set[@]}")
    teachers+=("$teacher")
    if [ "$task" != "$ANCHOR" ]; then routes+=(--teacher "$task=$teacher"); fi
done
anchor=$teacher

# Cold start.
if [ "$START" = merge ]; then
    init=$(stage merge merge "${teachers[@]}" --recipe "$SHELF/merge" "${start_set[@]}")
else
    init=$(stage coldstart coldstart --recipe "$coldstart_recipe" "${routes[@]}" "${many[@]}" "${start_set[@]}")
fi

# Distillation.
student=$(stage student distill --recipe "$SHELF/distill$VARIANT" --init "$init" "${routes[@]}" --anchor "$anchor" \
    "${many[@]}" "${distill_set[@]}")

# Evaluation of the base and of the student; a bar that is not reached ends the script with 3.
base=$(stage eval-base eval --recipe "$eval_recipe" "${many[@]}" "${eval_set[@]}")
scores=$(stage eval-student eval --recipe "$eval_recipe" --adapter "$student" "${many[@]}" "${eval_set[@]}" "${bars[@]}")

# Publication.
if [ -n "${REPO:-}" ]; then
    stage push push "$student" --eval "$base" --eval "$scores" --repo "$REPO" "${push_set[@]}"
else
    stage push-preview push "$student" --eval "$base" --eval "$scores" --dry-run "${push_set[@]}"
fi
