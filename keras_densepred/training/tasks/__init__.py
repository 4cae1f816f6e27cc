"""What the recipes of a task share: reading its data, evaluating, drawing and saving its models."""
