"""What every program needs and no reader of the method: nothing here knows a prompt, a reward, a metric or a model."""
