"""GLIPv2 in PyTorch: a detector that understands words. Knows neither Ray, nor URLs, nor shards, nor MLflow.

Shape letters used in every signature: ``b`` batch, ``a`` anchors (all levels), ``n`` boxes, ``t`` tokens,
``d`` embedding, ``c h w`` channels, height, width, ``l`` levels.

Where the paper (GLIPv2, arXiv 2206.05836) lives:

====================================  =============================  ==================================================
paper                                 file                           as we do it
====================================  =============================  ==================================================
section 3.1, image and text encoders  model/backbone.py, language.py Swin (timm), BERT (transformers)
section 3.1, deep fusion (GLIP)       model/fusion.py, dyhead.py     MHA-B, text layer, DyHead in every block
eq. 3, L_intra                        losses/grounding.py            token sigmoid focal loss
eq. 2, L_loc                          losses/assign.py, grounding.py ATSS; GIoU x 2 and centerness
section 3.3, prompt tuning            transfer/prompt.py             offset added to the text features before fusion
appendix C.1, prompts                 text/prompts.py                at most 85 categories per prompt in all
eq. 4 L_inter, L_mlm, masks, VQA      not yet                        see CHANGELOG.md
====================================  =============================  ==================================================
"""
