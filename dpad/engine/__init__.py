"""The engine: how an answer is decoded, from the settings to the forwards of a model."""
