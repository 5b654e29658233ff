"""What runs or builds a model: one module per runtime, behind the protocol in `base`."""
