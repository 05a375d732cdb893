"""Torch modules of Qwen2 and Qwen2-MoE whose parameters carry their Hugging Face names."""
