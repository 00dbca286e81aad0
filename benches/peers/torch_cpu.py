"""PyTorch on the CPU as a peer: runs one case per line of standard input and prints its seconds.

Started by `danaus bench ... --peers` with the number of threads as argument. A case is set up at its
first run, outside the time. Inputs are random; shapes are those of the benchmark of the same name.
"""

import sys
import time

import torch
import torch.nn.functional as F

from ssd_minimal_torch import ssd as ssd_minimal


class Attention(torch.nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = torch.nn.Linear(d_model, 3 * d_model)
        self.out = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        batch, length, d_model = x.shape
        head_dim = d_model // self.n_heads
        q, k, v = self.qkv(x).view(batch, length, 3, self.n_heads, head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, d_model))


class Mamba2(torch.nn.Module):
    """The Mamba-2 block around the chunked SSD of the paper's listing."""

    def __init__(self, d_model, d_state, head_dim, expand=2, width=4, chunk=64):
        super().__init__()
        self.d_inner, self.d_state, self.head_dim = expand * d_model, d_state, head_dim
        self.n_heads, self.chunk = self.d_inner // head_dim, chunk
        conv_dim = self.d_inner + 2 * d_state
        self.in_proj = torch.nn.Linear(d_model, self.d_inner + conv_dim + self.n_heads, bias=False)
        self.conv = torch.nn.Conv1d(conv_dim, conv_dim, width, groups=conv_dim, padding=width - 1)
        self.dt_bias = torch.nn.Parameter(torch.rand(self.n_heads) - 4)
        self.a_log = torch.nn.Parameter(torch.rand(self.n_heads))
        self.d = torch.nn.Parameter(torch.ones(self.n_heads))
        self.norm = torch.nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = torch.nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = [self.d_inner, self.d_inner + 2 * self.d_state, self.n_heads]
        z, xbc, dt = self.in_proj(x).split(parts, dim=-1)
        xbc = F.silu(self.conv(xbc.transpose(1, 2))[..., :length].transpose(1, 2))
        x, b, c = xbc.split([self.d_inner, self.d_state, self.d_state], dim=-1)
        x = x.reshape(batch, length, self.n_heads, self.head_dim)
        b, c = (t.unsqueeze(2).expand(-1, -1, self.n_heads, -1) for t in (b, c))
        dt = F.softplus(dt + self.dt_bias)
        y, _ = ssd_minimal(x * dt.unsqueeze(-1), -torch.exp(self.a_log) * dt, b, c, self.chunk)
        y = (y + x * self.d.unsqueeze(-1)).reshape(batch, length, self.d_inner) * F.silu(z)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * self.norm
        return self.out_proj(y)


class Block(torch.nn.Module):
    def __init__(self, d_model, mixer):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(d_model), torch.nn.LayerNorm(d_model)
        self.mixer = mixer
        self.up = torch.nn.Linear(d_model, 4 * d_model)
        self.down = torch.nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(torch.nn.Module):
    def __init__(self, mixer, vocab=512, d_model=256, layers=4):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab, d_model)
        self.blocks = torch.nn.ModuleList(Block(d_model, mixer(d_model)) for _ in range(layers))
        self.norm = torch.nn.LayerNorm(d_model)
        self.head = torch.nn.Linear(d_model, vocab, bias=False)

    def loss(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), ids.view(-1))


def model_step(mixer, update):
    model = Model(mixer)
    ids = torch.randint(0, 512, (8, 256))
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad(set_to_none=True)
        model.loss(ids).backward()
        if update:
            optimizer.step()

    return step


def inference(make):
    work = make()

    def run():
        with torch.no_grad():
            work()

    return run


def matmul(m, n, k, dtype):
    a, b = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype)
    return lambda: a @ b


def attention(dtype, batch=2, heads=8, length=4096, head_dim=64):
    q, k, v = (torch.randn(batch, heads, length, head_dim, dtype=dtype) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)


def elementwise(function):
    x, y = torch.randn(32768, 512), torch.randn(32768, 512)
    return lambda: function(x, y)


def ssd_forward(batch=1, length=2048, heads=24, head_dim=64, d_state=128):
    x = torch.randn(batch, length, heads, head_dim)
    log_decay = -torch.rand(batch, length, heads)
    b, c = (torch.randn(batch, length, 1, d_state).expand(-1, -1, heads, -1) for _ in range(2))
    return lambda: ssd_minimal(x, log_decay, b, c, 64)


def selective_scan(u, delta, a, b, c, d, z, bias):
    """The recurrence of Mamba-1 as plain tensor operations, one token after the other: u, delta, z
    [b, channels, l], a [channels, n], b and c [b, n, l]."""
    delta = F.softplus(delta + bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, a))
    entry = torch.einsum("bdl,bnl,bdl->bdln", delta, b, u)
    state = u.new_zeros(u.shape[0], *a.shape)
    outputs = []
    # Slices by index would make every backward step write a gradient of the whole array.
    for decay_t, entry_t, c_t in zip(decay.unbind(2), entry.unbind(2), c.unbind(2)):
        state = decay_t * state + entry_t
        outputs.append(torch.einsum("bdn,bn->bd", state, c_t))
    return (torch.stack(outputs, dim=2) + u * d[:, None]) * F.silu(z)


def scan_case(train, channels=1536, length=1024, d_state=16):
    arrays = [torch.randn(1, channels, length) for _ in range(3)]
    b, c = (torch.randn(1, d_state, length) for _ in range(2))
    a, (d, bias) = -torch.randn(channels, d_state).abs(), torch.randn(2, channels)
    tensors = [arrays[0], arrays[1], a, b, c, d, arrays[2], bias]
    if not train:
        return lambda: selective_scan(*tensors)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    cotangent = torch.randn(1, channels, length)
    return lambda: torch.autograd.grad(selective_scan(*leaves), leaves, cotangent)


F32, BF16 = torch.float32, torch.bfloat16
def monarch(w1, w2, x):
    """Two batched products around a transpose, as the public reference multiplies."""
    k, q, p = w1.shape
    l, s, r = w2.shape
    h = torch.bmm(x.reshape(-1, k, p).transpose(0, 1), w1.transpose(1, 2))
    h = h.transpose(0, 1).reshape(-1, r, l).permute(2, 0, 1)
    return torch.bmm(h, w2.transpose(1, 2)).permute(1, 2, 0).reshape(-1, s * l)


def butterfly(twiddle, x):
    """Factors of increasing strides as elementwise products, as the public reference multiplies."""
    log_n = twiddle.shape[0]
    n = 2**log_n
    for index in range(log_n):
        stride = 2**index
        blocks = twiddle[index].view(n // (2 * stride), stride, 2, 2).permute(0, 2, 3, 1)
        pairs = x.view(-1, n // (2 * stride), 1, 2, stride)
        x = (blocks * pairs).sum(dim=3).reshape(-1, n)
    return x


def structured(kind, dtype, train=False, n=4096, batch=256):
    def weight(*shape):
        values = torch.randn(*shape) / shape[-1] ** 0.5
        return values.to(dtype).requires_grad_(train)

    x = torch.randn(batch, n).to(dtype).requires_grad_(train)
    dy = torch.randn(batch, n).to(dtype)
    if kind == "dense":
        w = weight(n, n)
        product = lambda: F.linear(x, w)
    elif kind == "butterfly":
        w = weight(n.bit_length() - 1, n // 2, 2, 2)
        product = lambda: butterfly(w, x)
    else:
        side = n // kind
        w1, w2 = weight(kind, side, side), weight(kind, side, side)
        product = lambda: monarch(w1, w2, x)
    if not train:
        return lambda: product()
    return lambda: product().backward(dy)


MATRIX = {
    f"matrix_{name}_{dtype}": lambda kind=kind, torch_dtype=torch_dtype: inference(
        lambda: structured(kind, torch_dtype)
    )
    for name, kind in [("dense", "dense"), ("monarch64", 64), ("monarch4", 4), ("butterfly", "butterfly")]
    for dtype, torch_dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]
}
MATRIX_TRAIN = {
    f"matrix_{name}_f32_both": lambda kind=kind: structured(kind, torch.float32, train=True)
    for name, kind in [("dense", "dense"), ("monarch64", 64), ("monarch4", 4), ("butterfly", "butterfly")]
}

CASES = {
    **MATRIX,
    **MATRIX_TRAIN,
    "transformer_step": lambda: model_step(lambda d: Attention(d, 4), True),
    "mamba2_step": lambda: model_step(lambda d: Mamba2(d, 64, 64), False),
    "attention_f32": lambda: inference(lambda: attention(F32)),
    "attention_bf16": lambda: inference(lambda: attention(BF16)),
    "matmul_f32_1024": lambda: inference(lambda: matmul(1024, 1024, 1024, F32)),
    "matmul_bf16_1024": lambda: inference(lambda: matmul(1024, 1024, 1024, BF16)),
    "matmul_f64_1024": lambda: inference(lambda: matmul(1024, 1024, 1024, torch.float64)),
    "add_16m": lambda: inference(lambda: elementwise(lambda x, y: x + y)),
    "exp_16m": lambda: inference(lambda: elementwise(lambda x, y: x.exp())),
    "softmax_512": lambda: inference(lambda: elementwise(lambda x, y: x.softmax(-1))),
    "scan_forward": lambda: inference(lambda: scan_case(False)),
    "scan_packed": lambda: inference(lambda: scan_case(False)),
    "scan_train": lambda: scan_case(True),
    "ssd_forward": lambda: inference(ssd_forward),
}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    ready = {}
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        if name not in CASES:
            print(f"error: no case {name}", flush=True)
            continue
        work = ready.get(name) or ready.setdefault(name, CASES[name]())
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        del result
        print(seconds, flush=True)


if __name__ == "__main__":
    main()
