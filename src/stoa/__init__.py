"""Stoa: one base model, many tenants, each with its own LoRA adapters."""

__version__ = "0.1.0"
