"""The commands: one file each, composition of the other rooms only.

`train` (Algorithm 1), `search`, `retrain`, `evaluate`, `export`, `report`, and `run`, which does them all. Each works
on one run folder, goes on where it was stopped, and returns a plain dictionary whose key `next` is the next useful
command. What can be used without a run folder lives in the other rooms.
"""
