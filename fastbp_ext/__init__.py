"""Compiled parts of fastbp: tensors, the executor, kernels. No policy here."""
