"""What both stages are made of: tokens, masks, attention, the transformer, convolutions, sharding."""
