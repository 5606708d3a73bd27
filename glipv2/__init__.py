"""GLIPv2 in PyTorch: a detector that understands words. Knows neither Ray, nor URLs, nor shards, nor MLflow.

Shape letters used in every signature: ``b`` batch, ``a`` anchors (all levels), ``n`` boxes, ``t`` tokens,
``d`` embedding, ``c h w`` channels, height, width, ``l`` levels.

Where the paper (GLIPv2, arXiv 2206.05836) lives:

=====================================  =============================  ==================================================
paper                                  file                           as we do it
=====================================  =============================  ==================================================
Table 8, appendix C.1, sizes           config.py                      T, B, H; GLIP-T, GLIP-T (A), GLIP-L as released
section 3.1, image encoder             model/backbone.py              Swin (timm's parts), window by window; CoSwin
section 3.1, text encoder              model/language.py              BERT (transformers); CLIP-type, both directions
section 3.1, deep fusion (GLIP)        model/fusion.py, dyhead.py     MHA-B folded into the tokens; gathered DCNv2
eq. 2, the sum                         losses/criterion.py            every term with a weight; 0 is off
eq. 2, L_loc                           losses/assign.py, grounding.py ATSS; GIoU x 2 and centerness
eq. 3, L_intra                         losses/grounding.py            token sigmoid focal loss; unknown phrases left out
section 3.2, eq. 4, L_inter            losses/contrast.py             before the fusion, over all workers; the public
                                                                      code's fused variant by ``ModelConfig.contrast``
section 3.1, L_mlm                     losses/mlm.py, text/masking.py masked per sample; absent names hidden, not scored
section 3.3, prompt tuning             transfer/prompt.py             offset added to the text features before fusion
appendix C.1, prompts                  text/prompts.py                at most 85 categories in all; verified negatives
GLIP appendix C, captions              text/packing.py, text/sides.py negative captions; flips skip or swap left, right
released weights of GLIP               released.py, checkpoint.py     one table of names, read both ways
masks, VQA, captioning                 not yet                        see CHANGELOG.md
=====================================  =============================  ==================================================
"""
