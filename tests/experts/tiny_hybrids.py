"""Models of a few thousand parameters that are built otherwise than Llama: with other states, or with more than text."""

from typing import Any

HYBRIDS = ("lfm2", "falcon-h1", "granite-hybrid")
"""Attention beside short convolutions or Mamba layers."""

_SIZE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": 6,
    "eos_token_id": 7,
    "pad_token_id": 1,
    "initializer_range": 0.3,
}
_ATTENTION = {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_MAMBA = {"mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}


def make_multimodal() -> Any:
    """Gemma 3 with an image tower, as its larger sizes are: its own base model, and linears that never see text."""
    import torch
    import transformers

    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16}
    text = {**_SIZE, **_ATTENTION, **heads}
    image = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**image, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=1
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def make_hybrid(name: str) -> Any:
    """One of ``HYBRIDS``, or ``mamba``, which has no attention at all; with random weights, in eval mode."""
    import torch
    import transformers

    torch.manual_seed(0)
    config: Any
    if name == "lfm2":
        config = transformers.Lfm2Config(**_SIZE, **_ATTENTION, layer_types=["conv", "full_attention"])
    elif name == "falcon-h1":
        heads = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
        config = transformers.FalconH1Config(**_SIZE, **_ATTENTION, **_MAMBA, **heads)
    elif name == "granite-hybrid":
        heads = {"mamba_n_heads": 8, "mamba_d_head": 8, "num_local_experts": 0, "shared_intermediate_size": 64}
        layers = {"layer_types": ["mamba", "attention"]}
        config = transformers.GraniteMoeHybridConfig(**_SIZE, **_ATTENTION, **_MAMBA, **heads, **layers)
    else:
        config = transformers.MambaConfig(**_SIZE, state_size=4)
    return transformers.AutoModelForCausalLM.from_config(config).eval()
