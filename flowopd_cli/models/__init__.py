"""Model families: the only place that knows diffusers, transformers and PEFT."""
