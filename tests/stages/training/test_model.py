"""The adapters of a stage in their roles."""

import pytest

from flowopd_cli.recipe import ModelSpec, TeacherSpec
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.stages.training.model import Roles


@pytest.fixture
def refs(trainee, tmp_path):
    """Folders of three adapters of the tiny base."""
    for name in ("policy", "other", "third"):
        trainee.adapters.save(name, tmp_path / name, "tiny", trainee.fingerprint)
    return [str(tmp_path / name) for name in ("policy", "other", "third")]


def test_teachers_of_a_list_and_of_a_task_with_its_name_do_not_share_an_adapter(model, refs):
    keys = ("a.0", "a.1", "a_1", "a_1.0")
    specs = dict(zip(keys, [TeacherSpec(ref=ref) for ref in (*refs, refs[0])], strict=True))
    roles = Roles(model, Adapters())
    teachers = roles.add_teachers(specs, 1.0, ModelSpec())
    names = [teacher.adapter for teacher in teachers.values()]
    assert names == ["teacher_a_0", "teacher_a_1", "teacher_a_1_2", "teacher_a_0"]  # equal references share one
    assert [parent.role for parent in roles.parents] == names[:3]
    assert [parent.ref for parent in roles.parents] == refs
