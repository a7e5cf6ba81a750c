"""Adapters: PEFT folders read and checked, and known by name.

`peft.py` reads a folder: `config.py` parses and refuses adapter_config.json, `weights.py` opens and checks
adapter_model.safetensors, `targets.py` gives each module its rank and scale as PEFT would, with tenants' regular
expressions matched safely by `patterns.py`. `names.py` knows what PEFT calls things; `registry.py` is the names
that users give to adapters.
"""
