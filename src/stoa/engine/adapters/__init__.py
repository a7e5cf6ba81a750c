"""Adapters: PEFT folders read and checked (`peft`), and known by name (`registry`)."""
