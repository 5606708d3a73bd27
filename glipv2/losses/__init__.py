"""What the model is trained on: assignment, grounding and box losses."""
