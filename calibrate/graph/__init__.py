"""Graph changes, each a small pass over an onnx_ir model; where Q/DQ belongs, and a checker that it is there.

Nothing here runs a model or reads data.
"""
