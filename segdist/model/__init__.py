"""The network and what travels with it.

The U-Net and factories of other networks, the model file and its card, precision, torch.compile, ONNX export, and the
metrics by which a network is judged. May import `segdist.core` and `shards`.
"""
