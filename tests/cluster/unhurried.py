"""``prnn.train`` with 50 ms of rest before each step: a test that waits for something else leaves the cores alone."""

import sys
import time

from prnn import train
from prnn.tasks.char_lm import CharLM

compute = CharLM.loss


def rest_and_compute(*arguments):
    time.sleep(0.05)
    return compute(*arguments)


if __name__ == "__main__":
    CharLM.loss = rest_and_compute
    sys.exit(train.main())
