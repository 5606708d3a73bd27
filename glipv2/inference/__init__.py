"""From logits to detections, and the one public way to use a model."""

from glipv2.inference.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor"]
