"""What is reproduced: each row a preset, the figures it is judged by, what was published and what is aimed at.

``python -m benchmarks.reproduce NAME`` runs a row; docs/reproductions.md shows all of them, run or not.
"""

from __future__ import annotations

from benchmarks.rows import Figure, Group, Published, Row

# Where published figures come from: a name for the table, and an address.
SOURCES = {
    "nanoGPT": ("nanoGPT, its README", "https://github.com/karpathy/nanoGPT"),
    "plain torch": (
        "torch.nn.LSTM and GRU in a loop of a page, 2x128, 50 streams of 50 steps, Adam 2e-3, clip 5; torch 2.13 on 2 "
        "cores of a Zen 4, 67,000 and 50,000 characters/s",
        None,
    ),
}


def _val_loss(goal: float | None, *published: Published) -> tuple[Figure, ...]:
    return (Figure("best_val_loss", "validation loss, nats per character", "lower", goal, published),)


NANO = Published(1.88, "nanoGPT", "a transformer of 0.8 M parameters, its recipe for a CPU")
CHAR_LM = Group(
    "Character models",
    "Tiny Shakespeare, the first 90 % to train on, the loss over all of the last 10 %. The originals of the presets "
    "have no figures for this text: those beside them are of other models, on the same split.",
    (
        Row(
            "min_char_rnn",
            "min-char-rnn: RNN (tanh) of 100, one stream of 25 steps, Adagrad",
            ("experiment=min_char_rnn",),
            _val_loss(None, NANO),
            "about 5 minutes on 2 cores",
        ),
        Row(
            "char_rnn",
            "char-rnn: LSTM 2x128, RMSprop, 50 epochs",
            ("experiment=char_rnn",),
            _val_loss(1.5695, NANO, Published(1.5695, "plain torch", "after 180 s")),
            "about 10 minutes on 2 cores",
        ),
        Row(
            "torch_rnn",
            "torch-rnn: LSTM 2x128, embedding 64, Adam halved every 5 epochs, 50 epochs",
            ("experiment=torch_rnn",),
            _val_loss(1.5695, NANO, Published(1.5695, "plain torch", "after 180 s")),
            "about 10 minutes on 2 cores",
        ),
        Row(
            "char_lstm_31s",
            "LSTM 2x128, Adam 2e-3, 31 seconds",
            ("data=tinyshakespeare", "trainer.max_seconds=31"),
            _val_loss(1.724, Published(1.724, "plain torch", "after 31 s")),
            "2 cores, with nothing else running",
        ),
        Row(
            "char_lstm_180s",
            "LSTM 2x128, Adam 2e-3, 180 seconds",
            ("data=tinyshakespeare", "trainer.max_seconds=180"),
            _val_loss(1.5695, Published(1.5695, "plain torch", "after 180 s")),
            "2 cores, with nothing else running",
        ),
        Row(
            "char_gru_120s",
            "GRU 2x128, Adam 2e-3, 120 seconds",
            ("data=tinyshakespeare", "model=gru", "trainer.max_seconds=120"),
            _val_loss(1.5533, Published(1.5533, "plain torch", "after 120 s")),
            "2 cores, with nothing else running",
        ),
    ),
)

GROUPS = (CHAR_LM,)
ROWS = {row.name: row for group in GROUPS for row in group.rows}
