"""Who computes an op in the bench: this package's kernels, the references, and peers."""
