"""How the weights of sparse layers are held: the only code that touches them, their gradients and optimizer state.

Before the first masks there are only the layers in scope with the weights that they were given (``scope``). Once drawn,
masks are held by ``MaskedDense``, the reference for any other way.
"""
