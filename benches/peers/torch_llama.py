"""PyTorch on the processor as a peer: a Llama of a named shape reads prompts and writes tokens.

Started by `danaus bench generate --shape llama-130m --weights bf16 --peers` with the number of threads
as argument. Weights are random. Requests, one a line:

    prefill TOKENS SHAPE DTYPE              seconds to read a prompt of so many tokens
    decode BATCH PROMPT STEPS SHAPE DTYPE   median seconds of a step of BATCH sequences after a prompt
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

# vocab, width, layers, heads, key heads, head dim, inner width, rotary base
SHAPES = {
    "llama-130m": (50288, 768, 12, 12, 12, 64, 2048, 10000.0),
    "llama-1b": (128256, 2048, 16, 32, 8, 64, 8192, 500000.0),
}
CONTEXT = 1024


class Llama:
    def __init__(self, shape, dtype):
        vocab, width, layers, self.heads, self.kv, self.dim, inner, base = SHAPES[shape]
        self.vocab, self.layers, self.dtype = vocab, layers, dtype
        rand = lambda rows, cols: torch.randn(rows, cols).mul_(cols**-0.5).to(dtype)
        qkv = (self.heads + 2 * self.kv) * self.dim
        self.blocks = [
            {
                "qkv": rand(qkv, width),
                "out": rand(width, self.heads * self.dim),
                "gate_up": rand(2 * inner, width),
                "down": rand(width, inner),
            }
            for _ in range(layers)
        ]
        self.embedding = rand(vocab, width)
        self.norm = torch.ones(width, dtype=dtype)
        angles = torch.outer(torch.arange(CONTEXT).float(), base ** (-torch.arange(0, self.dim, 2) / self.dim))
        self.cos, self.sin = (torch.cat([t, t], -1).to(dtype) for t in (angles.cos(), angles.sin()))

    def rotate(self, x, at):
        cos, sin = (t[at : at + x.shape[2]] for t in (self.cos, self.sin))
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def fresh(self, batch):
        shape = (batch, self.kv, CONTEXT, self.dim)
        return [tuple(torch.zeros(shape, dtype=self.dtype) for _ in "kv") for _ in range(self.layers)]

    def forward(self, ids, cache, at):
        batch, length = ids.shape
        x = F.embedding(ids, self.embedding)
        sizes = [count * self.dim for count in (self.heads, self.kv, self.kv)]
        for block, (k_cache, v_cache) in zip(self.blocks, cache):
            h = F.rms_norm(x, self.norm.shape, self.norm, 1e-5)
            parts = F.linear(h, block["qkv"]).split(sizes, -1)
            q, k, v = (part.view(batch, length, -1, self.dim).transpose(1, 2) for part in parts)
            k_cache[:, :, at : at + length] = self.rotate(k, at)
            v_cache[:, :, at : at + length] = v
            keys, values = (t[:, :, : at + length] for t in (k_cache, v_cache))
            y = F.scaled_dot_product_attention(
                self.rotate(q, at), keys, values, is_causal=length > 1, enable_gqa=self.kv != self.heads
            )
            x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), block["out"])
            h = F.rms_norm(x, self.norm.shape, self.norm, 1e-5)
            gate, up = F.linear(h, block["gate_up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block["down"])
        last = F.rms_norm(x[:, -1], self.norm.shape, self.norm, 1e-5)
        return F.linear(last, self.embedding)

    def ids(self, batch, length):
        row = [(i * 7919 + 13) % self.vocab for i in range(length)]
        return torch.tensor([row] * batch)

    def prefill(self, length):
        cache, ids = self.fresh(1), self.ids(1, length)
        start = time.perf_counter()
        self.forward(ids, cache, 0)
        return time.perf_counter() - start

    def steps(self, batch, length, steps):
        cache, times = self.fresh(batch), []
        next_ids = self.forward(self.ids(batch, length), cache, 0).argmax(-1, keepdim=True)
        for step in range(steps + 1):
            start = time.perf_counter()
            next_ids = self.forward(next_ids, cache, length + step).argmax(-1, keepdim=True)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])


def answer(line, models):
    kind, *numbers, shape, dtype = line.split()
    if (shape, dtype) not in models:
        models[shape, dtype] = Llama(shape, {"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
    run = models[shape, dtype].prefill if kind == "prefill" else models[shape, dtype].steps
    return run(*map(int, numbers))


def main():
    torch.set_num_threads(int(sys.argv[1]))
    models = {}
    print("ready", flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            try:
                print(answer(line.strip(), models), flush=True)
            except Exception as error:
                print(f"error: {error}", flush=True)


if __name__ == "__main__":
    main()
