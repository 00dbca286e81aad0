"""Makes tests/golden/40-engine/families: tiny random checkpoints of every family, with the logits that
Hugging Face's own classes compute from them in float64; the hybrids of state-spaces by plain formulas in
float64. Needs torch and transformers 5.

    python tests/golden/make_families.py
"""

import json
import pathlib
import shutil

import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).parent / "40-engine" / "families"
SMALL = dict(vocab_size=48, bos_token_id=0, eos_token_id=1, pad_token_id=None)
LLAMA = dict(SMALL, hidden_size=32, intermediate_size=40, num_attention_heads=4, max_position_embeddings=64)
GPT = dict(SMALL, n_embd=32, n_head=4, n_layer=2, n_positions=32)
MAMBA = dict(SMALL, hidden_size=16, num_hidden_layers=2, state_size=8)

CASES = {
    "llama": hf.LlamaConfig(
        **LLAMA, num_hidden_layers=2, num_key_value_heads=2, attention_bias=True, mlp_bias=True,
        hidden_act="gelu", rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    ),
    "mistral": hf.MistralConfig(**LLAMA, num_hidden_layers=2, num_key_value_heads=1, sliding_window=6),
    "qwen2": hf.Qwen2Config(
        **LLAMA, num_hidden_layers=3, num_key_value_heads=2, use_sliding_window=True, sliding_window=5,
        max_window_layers=1, tie_word_embeddings=True,
    ),
    "qwen3": hf.Qwen3Config(**LLAMA, num_hidden_layers=2, num_key_value_heads=2, head_dim=24),
    "opt": hf.OPTConfig(
        **SMALL, hidden_size=32, ffn_dim=40, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=32, word_embed_proj_dim=16, activation_function="gelu",
    ),
    "gpt2": hf.GPT2Config(**GPT),
    "gpt_bigcode": hf.GPTBigCodeConfig(**GPT, multi_query=False, n_inner=40, scale_attn_weights=False),
    "mamba": hf.MambaConfig(**MAMBA, use_bias=True, use_conv_bias=False, tie_word_embeddings=False),
    "mamba2": hf.Mamba2Config(
        **MAMBA, expand=2, head_dim=8, num_heads=4, n_groups=2, chunk_size=8, use_bias=True,
        time_step_limit=(0.02, 0.2), tie_word_embeddings=True, layer_norm_epsilon=1e-3,
    ),
}


def randomise(model):
    """Values that make every part matter: initial biases and norms would hide mistakes."""
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        noise = torch.randn_like(parameter)
        if parameter.dim() >= 2 and last != "A_log":
            parameter.data = 0.2 * noise
        elif last in ("bias", "dt_bias"):
            parameter.data = 0.2 * noise - (2.0 if "dt_" in name else 0.0)
        else:
            parameter.data = parameter.data + 0.1 * noise


WIDTH, STATE, HEAD, GROUPED = 16, 8, 8, dict(num_heads=4, num_heads_kv=2, head_dim=8)


def hybrid_config(ssm):
    return {
        "d_model": WIDTH, "d_intermediate": 100, "n_layer": 3, "vocab_size": 29,
        "ssm_cfg": {"layer": ssm, "d_state": STATE, **({"headdim": HEAD} if ssm == "Mamba2" else {})},
        "attn_layer_idx": [1],
        "attn_cfg": {
            "causal": True, "qkv_proj_bias": True, "out_proj_bias": False, "rotary_emb_dim": 4,
            "rotary_emb_base": 100.0, **GROUPED,
        },
        "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
        "pad_vocab_size_multiple": 8, "tie_embeddings": True,
    }


def hybrid_weights(config):
    inner, hidden, rank = 2 * WIDTH, 128, 1
    qkv = (GROUPED["num_heads"] + 2 * GROUPED["num_heads_kv"]) * GROUPED["head_dim"]
    weights = {"embedding.weight": torch.randn(32, WIDTH), "norm_f.weight": 1 + 0.1 * torch.randn(WIDTH)}

    def add(name, *shape, scale=0.3, shift=0.0):
        weights[f"layers.{layer}.{name}"] = shift + scale * torch.randn(*shape)

    for layer in range(3):
        add("norm.weight", WIDTH, scale=0.1, shift=1.0)
        add("norm2.weight", WIDTH, scale=0.1, shift=1.0)
        add("mlp.fc1.weight", 2 * hidden, WIDTH)
        add("mlp.fc2.weight", WIDTH, hidden, scale=0.1)
        if layer in config["attn_layer_idx"]:
            add("mixer.in_proj.weight", qkv, WIDTH)
            add("mixer.in_proj.bias", qkv)
            add("mixer.out_proj.weight", WIDTH, 32)
            continue
        second = config["ssm_cfg"]["layer"] == "Mamba2"
        channels, heads = (inner + 2 * STATE, inner // HEAD) if second else (inner, inner)
        add("mixer.conv1d.weight", channels, 1, 4)
        add("mixer.conv1d.bias", channels)
        add("mixer.D", heads, shift=1.0)
        add("mixer.out_proj.weight", WIDTH, inner)
        if second:
            add("mixer.in_proj.weight", inner + channels + heads, WIDTH)
            add("mixer.dt_bias", heads, shift=-1.0)
            add("mixer.A_log", heads)
            add("mixer.norm.weight", inner, scale=0.1, shift=1.0)
        else:
            add("mixer.in_proj.weight", 2 * inner, WIDTH)
            add("mixer.x_proj.weight", rank + 2 * STATE, inner)
            add("mixer.dt_proj.weight", inner, rank)
            add("mixer.dt_proj.bias", inner, shift=-1.0)
            add("mixer.A_log", inner, STATE)
    return weights


def rms(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def conv(x, p):
    padded = F.pad(x.transpose(1, 2), (3, 0))
    return F.silu(F.conv1d(padded, p("conv1d.weight"), p("conv1d.bias"), groups=x.shape[-1])).transpose(1, 2)


def scan(x, dt, decay, b, c):
    """h = e^(dt decay) h + dt b x, y = c h; x [B, L, D], dt [B, L, D], decay [D, N], b and c [B, L, N]."""
    state, out = torch.zeros(x.shape[0], x.shape[2], b.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        kept = torch.exp(dt[:, t, :, None] * decay) * state
        state = kept + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        out.append((state * c[:, t, None]).sum(-1))
    return torch.stack(out, 1)


def mamba2(u, p):
    inner = 2 * WIDTH
    z, xbc, dt = (u @ p("in_proj.weight").T).split([inner, inner + 2 * STATE, inner // HEAD], -1)
    x, b, c = conv(xbc, p).split([inner, STATE, STATE], -1)
    each = lambda v: v.repeat_interleave(HEAD, -1)
    dt = each(F.softplus(dt + p("dt_bias")))
    decay = -torch.exp(each(p("A_log")))[:, None].expand(inner, STATE)
    y = scan(x, dt, decay, b, c) + each(p("D")) * x
    return rms(y * F.silu(z), p("norm.weight")) @ p("out_proj.weight").T


def mamba1(u, p):
    x, z = (u @ p("in_proj.weight").T).chunk(2, -1)
    x = conv(x, p)
    dt, b, c = (x @ p("x_proj.weight").T).split([1, STATE, STATE], -1)
    dt = F.softplus(dt @ p("dt_proj.weight").T + p("dt_proj.bias"))
    y = scan(x, dt, -torch.exp(p("A_log")), b, c) + p("D") * x
    return (y * F.silu(z)) @ p("out_proj.weight").T


def attention(u, p, cfg):
    heads, kv, dim, turned = cfg["num_heads"], cfg["num_heads_kv"], cfg["head_dim"], cfg["rotary_emb_dim"]
    qkv = u @ p("in_proj.weight").T + p("in_proj.bias")
    q, k, v = (
        part.unflatten(-1, (-1, dim)).transpose(1, 2)
        for part in qkv.split([heads * dim, kv * dim, kv * dim], -1)
    )
    at = torch.arange(u.shape[1], dtype=u.dtype)
    frequency = cfg["rotary_emb_base"] ** (-torch.arange(0, turned, 2, dtype=u.dtype) / turned)
    cos, sin = (at[:, None] * frequency).cos(), (at[:, None] * frequency).sin()

    def turn(x):
        a, b, rest = x.split([turned // 2, turned // 2, dim - turned], -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)

    k, v = (x.repeat_interleave(heads // kv, 1) for x in (turn(k), v))
    scores = turn(q) @ k.transpose(-1, -2) * dim**-0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ p("out_proj.weight").T


def hybrid(name, ssm, mixer):
    config = hybrid_config(ssm)
    weights = hybrid_weights(config)
    wide = {key: value.double() for key, value in weights.items()}
    ids = torch.randint(0, config["vocab_size"], (2, 19))
    x = wide["embedding.weight"][ids]
    hiddens = [x]
    for layer in range(config["n_layer"]):
        p = lambda key: wide[f"layers.{layer}.{key}"]
        inside = lambda key: p(f"mixer.{key}")
        u = rms(x, p("norm.weight"))
        attends = layer in config["attn_layer_idx"]
        x = x + (attention(u, inside, config["attn_cfg"]) if attends else mixer(u, inside))
        y, gate = (rms(x, p("norm2.weight")) @ p("mlp.fc1.weight").T).chunk(2, -1)
        x = x + (y * F.silu(gate)) @ p("mlp.fc2.weight").T
        hiddens.append(x)
    hiddens[-1] = rms(x, wide["norm_f.weight"])
    logits = hiddens[-1] @ wide["embedding.weight"].T
    folder = ROOT / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    stored = {f"backbone.{key}": value for key, value in weights.items()}
    stored["lm_head.weight"] = weights["embedding.weight"].clone()
    save_file(stored, folder / "model.safetensors")
    save_expected(folder, ids, logits, hiddens)


def save_expected(folder, ids, logits, hiddens):
    tensors = {"input_ids": ids.int(), "logits": logits.float()}
    for layer, hidden in enumerate(hiddens):
        tensors[f"hidden_{layer:02}"] = hidden.float()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
    print(folder.name, logits.std().item())


def main():
    shutil.rmtree(ROOT, ignore_errors=True)
    for seed, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = hf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            randomise(model)
            folder = ROOT / name
            model.save_pretrained(folder)
            ids = torch.randint(0, config.vocab_size, (2, 19))
            out = model.double()(ids, output_hidden_states=True, use_cache=False)
        save_expected(folder, ids, out.logits, out.hidden_states)
    torch.manual_seed(99)
    hybrid("hybrid_mamba2", "Mamba2", mamba2)
    hybrid("hybrid_mamba1", "Mamba1", mamba1)


main()
