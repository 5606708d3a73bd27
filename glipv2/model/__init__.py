"""The network, split into encode_image, encode_text and fuse."""
