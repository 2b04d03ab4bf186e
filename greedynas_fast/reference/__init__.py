"""The pure PyTorch twin of every accelerated operation: the oracle of the tests, and what runs where nothing else can.

This room imports none of ours. Every function is plain, differentiable torch code on tensors of any dtype and device.
"""
