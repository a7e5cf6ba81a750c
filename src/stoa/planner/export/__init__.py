"""Plans in other tools' words: each module has `export(plan, problem, period)`, which gives texts by file name.

`period` None: least and most of each kind over all periods; else the counts of that one.
"""
