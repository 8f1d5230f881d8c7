"""Options of the published generators, LlamaGen's being the defaults."""

VAR = {
    "layout": "scales",
    "activation": "gelu",
    "qk_norm": "l2",
    "bias": True,
    "position": "learned",
    "norm": "adaptive",
}
