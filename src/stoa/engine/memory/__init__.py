"""One pool of equal pages, shared by KV blocks and adapters (S-LoRA's unified paging, arXiv 2311.03285).

    page 0 … ─────────────────────────────────────────────── … page N-1
    [KV][KV][cached KV][KV][free][free]…[free][ adapter run ][adapter run]
     single pages, taken from the low end       runs of adjacent pages, from the high end

`pool.py` owns the bytes and says which pages are free. `blocks.py` owns KV pages: reference counts and the
prefix cache. `adapter_cache.py` owns adapter runs: disk → host memory → pool. What nobody uses just now
(cached prefixes, idle adapters) stays until the space is wanted, oldest first.
"""
