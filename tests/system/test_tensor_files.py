"""Safetensors files written tensor by tensor."""

import torch
from safetensors.torch import load_file, save

from flowopd_cli.system.tensor_files import KINDS, serialized, write_tensors


def tensors_of(kinds):
    """Two tensors of each type, and some of unusual layouts."""
    ones = {f"{i}.{kind}": torch.ones(3, i).to(getattr(torch, kind)) for i in (2, 1) for kind in kinds}
    return {**ones, "transposed": torch.arange(6.0).view(2, 3).T, "empty": torch.zeros(0), "scalar": torch.tensor(7.0)}


def test_the_library_reads_every_type(tmp_path):
    tensors = tensors_of(KINDS)
    write_tensors(tmp_path / "one", tensors)
    loaded = load_file(tmp_path / "one")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_floats_have_the_bytes_of_the_library():
    tensors = tensors_of(("float64", "float32", "bfloat16"))
    assert b"".join(serialized(tensors)) == save({name: tensor.contiguous() for name, tensor in tensors.items()})


def test_the_bytes_do_not_depend_on_any_order():
    one = b"".join(serialized({"a": torch.ones(2), "b": torch.zeros(1)}, {"x": "1", "é": "2"}))
    other = b"".join(serialized({"b": torch.zeros(1), "a": torch.ones(2)}, {"é": "2", "x": "1"}))
    assert one == other
