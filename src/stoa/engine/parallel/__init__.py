"""One engine on several GPUs: tensor parallelism (Shoeybi et al., 2019) by torch.distributed.

Rank 0 is the engine (`leader.py`); ranks 1 and up are processes that hold their shards (`shards.py`) of weights, pages
and adapters, and run the forward pass of each step with it (`follower.py`). What they add up goes through `group.py`,
what rank 0 tells them through `messages.py`. With one rank nothing of this room is imported but `shards.py`.
"""
