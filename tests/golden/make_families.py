"""Makes tests/golden/40-engine/families: tiny random checkpoints of every family, with the logits that
Hugging Face's own classes compute from them in float64. Needs torch and transformers 5.

    python tests/golden/make_families.py
"""

import pathlib
import shutil

import torch
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
        tensors = {"input_ids": ids.int(), "logits": out.logits.float()}
        for layer, hidden in enumerate(out.hidden_states):
            tensors[f"hidden_{layer:02}"] = hidden.float()
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "expected.safetensors")
        print(name, sum(p.numel() for p in model.parameters()), out.logits.std().item())


main()
