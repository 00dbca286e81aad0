"""Peer of the `ssd` bench: the chunked state-space-duality algorithm in plain PyTorch.

Follows the equations of the Mamba-2 paper (Dao and Gu, 2024, section 6) as tensor contractions: blocks
on the diagonal, states of the chunks, passing of states, contribution of the entering states. B and C
are given per group and expanded to heads, as the common minimal implementation does.

Protocol: one command a line on standard input, `case mode`, where mode is `forward` or `train`; the
reply is the time of one call in milliseconds. Run by `cargo bench -p danaus-kernel --bench ssd`.
"""

import os
import sys
import time

import torch
import torch.nn.functional as F

# name: batch, seqlen, heads, head_dim, groups, d_state
CASES = {
    "long": (1, 2048, 24, 64, 1, 128),
    "model": (8, 256, 8, 64, 1, 64),
    "grouped": (1, 2048, 24, 64, 24, 128),
}
CHUNK = 64


def decay_matrix(log_decay):
    """exp of the sums of log_decay over (j, i], lower triangular, from [..., chunk]."""
    length = log_decay.shape[-1]
    total = torch.cumsum(log_decay, dim=-1)
    exponent = total[..., :, None] - total[..., None, :]
    keep = torch.ones(length, length, dtype=torch.bool).tril()
    return torch.exp(exponent.masked_fill(~keep, -torch.inf))


def ssd(x, log_decay, b, c, chunk=CHUNK):
    """x [b, l, h, p] already times dt, log_decay [b, l, h], b and c [b, l, h, n]."""
    batch, length, heads, head_dim = x.shape
    x, b, c = (t.reshape(batch, length // chunk, chunk, heads, -1) for t in (x, b, c))
    a = log_decay.reshape(batch, length // chunk, chunk, heads).permute(0, 3, 1, 2)
    total = torch.cumsum(a, dim=-1)
    inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, decay_matrix(a), x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, torch.exp(total[..., -1:] - total), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = decay_matrix(F.pad(total[..., -1], (1, 0)))
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)
    states, final = states[:, :-1], states[:, -1]
    outside = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, torch.exp(total))
    return (inside + outside).reshape(batch, length, heads, head_dim), final


def mamba2(x, dt, a, b, c, d):
    """The operator with the handling of dt and the skip connection."""
    dt = F.softplus(dt)
    repeat = x.shape[2] // b.shape[2]
    b, c = (t.repeat_interleave(repeat, dim=2) for t in (b, c))
    y, _ = ssd(x * dt[..., None], dt * a, b, c)
    return y + x * d[:, None]


def make(name):
    torch.manual_seed(0)
    batch, length, heads, head_dim, groups, d_state = CASES[name]
    x = torch.randn(batch, length, heads, head_dim)
    dt = torch.randn(batch, length, heads) - 2
    a = -torch.rand(heads) * 4 - 1
    b, c = (torch.randn(batch, length, groups, d_state) for _ in range(2))
    return [t.requires_grad_() for t in (x, dt, a, b, c, torch.ones(heads))]


def main():
    torch.set_num_threads(int(os.environ.get("DANAUS_THREADS", "2")))
    inputs = {}
    for line in sys.stdin:
        name, mode = line.split()
        tensors = inputs.setdefault(name, make(name))
        start = time.perf_counter()
        if mode == "forward":
            with torch.no_grad():
                mamba2(*tensors)
        else:
            y = mamba2(*tensors)
            torch.autograd.grad(y, tensors, torch.ones_like(y))
        print((time.perf_counter() - start) * 1e3, flush=True)


if __name__ == "__main__":
    main()
