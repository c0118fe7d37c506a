"""Tensors in, tensors out: the networks, the maskings and the targets. No files, no stages, no configuration source.

One legend for every signature in this package:

    B  clips in a batch            t h w  token grid of a clip
    T H W  frames, height, width   N      tokens of a clip, t*h*w, in (t, h, w) order
    C  channels                    V      visible tokens: what the encoder sees
    D  encoder width               P      predicted tokens: what the decoder reconstructs
    E  decoder width               K      codebook size

Clips are ``uint8 [T H W C]`` on disk and ``float [B C T H W]`` in [0, 1] in here. Index sets (``visible``, ``predict``)
hold token positions; there are no boolean masks and so no polarity to remember.
"""
