"""What the chapters use beside the library itself.

A chapter begins with `start()`, shows the library's source with `show`, lets the reader move sliders with
`explore`, and ends each exercise with `check`. `projector()` makes all pictures larger.

Some of these functions have the name of the module that they are in. All of them are imported here at once, so
that `from minids.book import check` is the function, whatever was imported before. IPython and the other packages
of the extra [book] are imported inside the functions that need them: `minids train` draws its pictures without.
"""

import random

import numpy as np
import torch

from minids.book.check import check, exercise
from minids.book.claims import claims
from minids.book.explore import explore
from minids.book.notation import notation
from minids.book.plots.style import projector
from minids.book.show import show

__all__ = ["check", "claims", "exercise", "explore", "notation", "projector", "show", "start"]


def start(seed: int = 0) -> None:
    """Seed every generator of random numbers and let tensors print with three decimals."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (for readers' own code)
    torch.manual_seed(seed)
    torch.set_printoptions(precision=3, sci_mode=False)
    print(f"seed {seed}, torch {torch.__version__.partition('+')[0]}, numbers in {torch.get_default_dtype()}")
