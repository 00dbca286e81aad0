"""The cases of crates/tensor/examples/elementwise_speed.rs in PyTorch; prints medians in ms."""
import sys
import time

import torch

torch.set_num_threads(2)
repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 11
side = 4096
wave = torch.sin(torch.arange(side * side, dtype=torch.float64)).float()
a, b = wave.view(side, side), wave.flip(0).contiguous().view(side, side)
row, column = a[:1], a[:, :1].contiguous()
a16, b16 = a.bfloat16(), b.bfloat16()
index = torch.arange(side - 1, -1, -1)
small = a[:1, :8].contiguous()


def tiny():
    total = small
    for _ in range(1000):
        total = total + small
    return total


cases = {
    "add": lambda: a + b,
    "add row": lambda: a + row,
    "add column": lambda: a + column,
    "add bf16": lambda: a16 + b16,
    "exp": lambda: a.exp(),
    "sin": lambda: a.sin(),
    "tanh": lambda: a.tanh(),
    "fused": lambda: torch.where(a > 0, a * b, 0.5 * a.exp()),
    "gt": lambda: a > b,
    "to bf16": lambda: a.bfloat16(),
    "from bf16": lambda: a16.float(),
    "to f16": lambda: a.half(),
    "transpose": lambda: a.t().contiguous(),
    "cat": lambda: torch.cat([row, a]),
    "sum all": lambda: a.sum(),
    "sum rows": lambda: a.sum(1),
    "sum columns": lambda: a.sum(0),
    "max rows": lambda: a.amax(1),
    "argmax rows": lambda: a.argmax(1),
    "cumsum rows": lambda: a.cumsum(1),
    "index select": lambda: a.index_select(0, index),
    "sort 1M": lambda: a[:256].sort(1)[0],
    "topk 1M": lambda: a[:256].topk(8, 1)[0],
    "1000 tiny adds": tiny,
}
for name, case in cases.items():
    case()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        result = case()
        times.append((time.perf_counter() - start) * 1e3)
        del result
    print(f"{name:<14} {sorted(times)[len(times) // 2]:9.3f} ms")
