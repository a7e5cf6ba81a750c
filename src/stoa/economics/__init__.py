"""Prices, usage, and what each project's use has cost: every nano-dollar is somebody's."""
