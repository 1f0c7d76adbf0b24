"""Recipes: the complete, typed settings of a command. Other packages import from here only."""

from flowopd_cli.recipe.fields import Spec
from flowopd_cli.recipe.reading import (
    assign,
    build,
    digest,
    dump,
    faults,
    find,
    load,
    parse_override,
    read,
    shipped,
    shipped_studies,
)
from flowopd_cli.recipe.recipes import (
    STAGES,
    ColdstartRecipe,
    DistillRecipe,
    EvalRecipe,
    MergeRecipe,
    PushRecipe,
    Recipe,
    TeacherRecipe,
    TrainedRecipe,
    reward_fields,
)
from flowopd_cli.recipe.sections import (
    AdapterSpec,
    AnchorSpec,
    EvalSpec,
    MergeSpec,
    ModelSpec,
    PromptSpec,
    PushSpec,
    RewardSpec,
    RouteSpec,
    SamplingSpec,
    TeacherSpec,
)
from flowopd_cli.recipe.study import StageSpec, StudySpec, load_study
from flowopd_cli.recipe.training import AWMSpec, BestSpec, NFTSpec, StopSpec, TrainSpec, WatchSpec
