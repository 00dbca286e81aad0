"""Attention on a GPU by PyTorch's back ends, in turns with `danaus bench attention --device cuda --peers`.

A line is `BACKEND PASS BATCH LENGTH HEADS HEAD_DIM KIND`: cudnn or flash, forward or both, full or causal.
The answer is the mean of 20 calls on the GPU's clock, in seconds.
"""
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
CALLS = 20
prepared = {}


def prepare(line):
    backend, what, batch, length, heads, dim, kind = line.split()
    shape = (int(batch), int(length), int(heads), int(dim))
    torch.manual_seed(1)
    q, k, v, grad = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    backward = what == "both"
    for leaf in (q, k, v):
        leaf.requires_grad_(backward)

    def call():
        with sdpa_kernel(BACKENDS[backend]):
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")
        if backward:
            torch.autograd.grad(y, (q, k, v), grad)

    for _ in range(5):
        call()
    return call


def seconds(call):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS / 1e3


print("ready", flush=True)
for request in sys.stdin:
    request = request.strip()
    try:
        if request not in prepared:
            prepared.clear()
            prepared[request] = prepare(request)
        print(seconds(prepared[request]), flush=True)
    except Exception as error:
        print(f"error: {str(error).splitlines()[0]}", flush=True)
