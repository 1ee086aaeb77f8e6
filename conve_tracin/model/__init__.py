"""ConvE and the loss that it is trained with."""
