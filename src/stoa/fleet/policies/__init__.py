"""What the fleet decides, as functions of what is seen.

The live control loop calls them on wall time, the simulator on simulated time. Nothing here waits, draws its own random
numbers, or knows what carries a decision out.
"""
