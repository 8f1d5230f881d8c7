"""Images <-> Tokens: encoders, quantizers, decoders, and the losses that train them."""
