"""Kernels: one body, compiled for every instruction set and for float and double."""
