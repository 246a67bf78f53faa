"""The blocked algorithms: matrix products and row operations over blocks of the logits. Nothing of size (N, V) in fp32 exists here.

A row backend is a module with `update_statistics`, `d_logits` and `policy_rows`: `aer_kernels.torch_rows` or `aer_kernels.kernels`.
"""
