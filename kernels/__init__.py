"""Triton kernels, installed and imported as `greedynas_fast.kernels` (never as a top-level `kernels`).

Empty until the op-masked layers arrive: the folder is mapped into the package from the first day so that packaging
carries it.
"""
