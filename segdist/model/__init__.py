"""The model and what travels with it.

The U-Net and factories of other models, the model file and its card, precision, torch.compile, ONNX export, and the
metrics by which a model is judged. May import `segdist.core` and `shards`.
"""
