"""What carries out a controller's decisions: processes on this machine (`local.py`), or a Ray cluster (`../cluster`)."""
