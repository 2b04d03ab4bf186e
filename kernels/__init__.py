"""Triton kernels, installed and imported as `greedynas_fast.kernels` (never as a top-level `kernels`).

`groups` (where a group of a batch of several paths lies), `activation` and `reduction` are what the kernels share.
Files here import triton and one another; what launches them, and on which tiles, is in `greedynas_fast.ops`;
`sgd` alone has its launches with it.
"""
