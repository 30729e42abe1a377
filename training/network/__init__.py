"""The encoder: base class and head, backbones, architecture, where its weights come from."""
