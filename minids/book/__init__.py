"""What the chapters use beside the library itself.

A chapter begins with `start()`, prints the library's source with `show`, folds the answers to predictions with
`reveal`, adds sliders to pictures with `explore`, and ends each exercise with `check`. `projector()` enlarges text and
pictures.

Some of these functions have the same name as their module. All of them are imported here, so that
`from minids.book import check` is always the function. IPython and the other packages of the extra [book] are imported
inside the functions that need them, because `minids train` draws its pictures without them.
"""

import random

import numpy as np
import torch

from minids.book.check import check, exercise
from minids.book.claims import claims
from minids.book.explore import explore
from minids.book.minutes import minutes
from minids.book.notation import notation
from minids.book.plots.style import projector
from minids.book.predict import reveal
from minids.book.show import show

__all__ = ["check", "claims", "exercise", "explore", "minutes", "notation", "projector", "reveal", "show", "start"]


def start(seed: int = 0) -> None:
    """Seed every generator of random numbers and let tensors print with three decimals."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (for readers' own code)
    torch.manual_seed(seed)
    torch.set_printoptions(precision=3, sci_mode=False)
    print(f"seed {seed}, torch {torch.__version__.partition('+')[0]}, numbers in {torch.get_default_dtype()}")
