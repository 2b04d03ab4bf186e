"""Public stateless operations: checks, choice of the back end, autograd, shapes for tracing, FLOP formulas.

Importing this room registers the operations with torch; it is imported where layers are built, not with the package.
"""
