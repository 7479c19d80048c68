"""Where tasks are on stable storage. `base` is the protocol; one module an implementation."""
