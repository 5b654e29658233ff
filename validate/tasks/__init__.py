"""What a model is for: outputs and labels in, per-sample scores out. No model is run here."""
