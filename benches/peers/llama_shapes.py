"""Writes Llama shapes with random weights as GGUF files, for benchmarks that compare readers of them.

    python benches/peers/llama_shapes.py FOLDER [SHAPE ...]

makes FOLDER/SHAPE-q8_0.gguf and FOLDER/SHAPE-q4_0.gguf with the `gguf` package. Speed does not depend on
the values of weights. The files have no tokenizer.
"""

import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import quantize

# vocab, width, layers, heads, key heads, head dim, inner width, rotary base
SHAPES = {
    "llama-130m": (50288, 768, 12, 12, 12, 64, 2048, 10000.0),
    "llama-1b": (128256, 2048, 16, 32, 8, 64, 8192, 500000.0),
}
TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}


def write(path, shape, kind):
    vocab, width, layers, heads, kv, dim, inner, base = SHAPES[shape]
    rng = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(2048)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_rope_dimension_count(dim)
    out.add_rope_freq_base(base)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(vocab)
    out.add_tokenizer_model("none")

    def matrix(name, rows, cols, kind=kind):
        values = rng.standard_normal((rows, cols), dtype=np.float32) / np.float32(cols**0.5)
        out.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    def ones(name):
        out.add_tensor(name, np.ones(width, np.float32))

    # A tied head: readers of the format keep it in eight bits.
    matrix("token_embd.weight", vocab, width, TYPES["q8_0"])
    ones("output_norm.weight")
    for layer in range(layers):
        at = f"blk.{layer}."
        ones(at + "attn_norm.weight")
        ones(at + "ffn_norm.weight")
        matrix(at + "attn_q.weight", heads * dim, width)
        matrix(at + "attn_k.weight", kv * dim, width)
        matrix(at + "attn_v.weight", kv * dim, width)
        matrix(at + "attn_output.weight", width, heads * dim)
        matrix(at + "ffn_gate.weight", inner, width)
        matrix(at + "ffn_up.weight", inner, width)
        matrix(at + "ffn_down.weight", width, inner)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for shape in sys.argv[2:] or SHAPES:
        for name, kind in TYPES.items():
            write(folder / f"{shape}-{name}.gguf", shape, kind)


if __name__ == "__main__":
    main()
