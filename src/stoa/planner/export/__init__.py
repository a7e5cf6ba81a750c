"""Plans in other tools' words: each module has `export(plan, problem, facts)`, which gives texts by file name."""
