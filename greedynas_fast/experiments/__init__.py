"""The paper's tables as commands; composition only.

`benchmark` reads NAS-Bench-Macro, `table4` repeats Table 4 (the path filter on ground-truth labels).
"""
