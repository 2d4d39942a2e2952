"""Watching a training from outside: samples of tensors, norms of parameters, the loss and its graph. The room for torch."""
