"""From logits to detections."""
