"""Qwen3-Omni's parts as plain, batched PyTorch for training; parameter names equal those of transformers."""
