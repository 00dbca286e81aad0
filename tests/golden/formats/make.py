"""Makes the PyTorch files of this folder and what they hold, as safetensors.

Run in this folder: python make.py. Needs torch and safetensors.
"""

import collections
import os
import torch
from safetensors.torch import save_file


class Poison:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch poisoned",))


def tensors():
    """Views of one storage, and one tensor of every element type."""
    base = torch.arange(24, dtype=torch.float32) * 0.5 - 3.0
    state = collections.OrderedDict()
    state["whole"] = base.view(4, 6)
    state["transposed"] = base.view(4, 6).t()
    state["part"] = base[5:17:3]
    state["block"] = base.view(2, 3, 4)[:, 1:, ::2]
    state["tied"] = state["whole"]
    state["parameter"] = torch.nn.Parameter(torch.tensor([1.5, -2.25], dtype=torch.bfloat16))
    state["scalar"] = torch.tensor(7, dtype=torch.int64)
    state["empty"] = torch.zeros(0, 3)
    for name in ["float64", "float16", "int32", "int8", "uint8", "bool", "complex64"]:
        state["of." + name] = torch.tensor([0, 1, 2, 3, 5], dtype=getattr(torch, name))
    return state


state = tensors()
torch.save(state, "state.bin")
torch.save(state, "state-protocol4.bin", pickle_protocol=4)
expected = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
save_file(expected, "state.safetensors")
torch.manual_seed(5)
module = torch.nn.Linear(3, 2)
torch.save(module.state_dict(), "module.bin")
torch.save(module.state_dict(), "legacy.bin", _use_new_zipfile_serialization=False)
torch.save(module, "whole-module.bin")
torch.save({"state_dict": module.state_dict(), "step": 3}, "nested.bin")
torch.save({"a": torch.zeros(2), "b": Poison()}, "poisoned.bin")
torch.save({"a": torch.zeros(1).expand(1000)}, "expanded.bin")
