"""The model and everything that belongs to it.

The U-Net and factories of other models, the model file and its card, precision, torch.compile, ONNX export, and the
metrics. May import `segdist.core` and `shards`.
"""
