"""The loop in Lightning, with its progress bar, checkpoints and model summary off."""

import lightning
import torch
import torch.nn.functional as F
from common import GLOBAL_BATCH, LOG_EVERY, RANKS, Pace, build_model, dataset
from torch.utils.data import DataLoader


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build_model()

    def training_step(self, batch, number):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Timed(lightning.Callback):
    def on_train_start(self, trainer, module):
        self.pace = Pace(trainer.global_rank)

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        if self.pace.step():
            trainer.should_stop = True


trainer = lightning.Trainer(
    accelerator="cpu",
    devices=RANKS,
    strategy="ddp",
    max_steps=-1,
    max_epochs=-1,
    log_every_n_steps=LOG_EVERY,
    logger=False,
    callbacks=[Timed()],
    enable_progress_bar=False,
    enable_checkpointing=False,
    enable_model_summary=False,
)
loader = DataLoader(dataset(), batch_size=GLOBAL_BATCH // RANKS, shuffle=True, drop_last=True)
trainer.fit(Classifier(), loader)
