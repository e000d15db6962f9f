"""PAD-Net's decoder, which predicts every task, exchanges features between the tasks, and predicts again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtlbench.networks.blocks import Predictor, bottleneck, per_task
from mtlbench.networks.decoder import DenseHead, Neck
from mtlbench.networks.encoder import Encoder
from mtlbench.networks.feature_exchange import ExchangeDecoder, FeatureExchange
from mtlbench.tasks import Task


class PADDecoder(ExchangeDecoder):
    """A neck, initial features and predictions of every task, an exchange of features, and final heads."""

    def __init__(self, tasks: Mapping[str, Task], encoder: Encoder, width: int, image_size: tuple[int, int]) -> None:
        """Builds the decoder.

        Args:
            tasks: Dense tasks by name.
            encoder: Encoder whose maps are decoded.
            width: Channels of the neck and of a task's feature.
            image_size: Height and width of predictions.
        """
        super().__init__()
        self.neck = Neck(encoder.channels, encoder.strides, width)
        self.initial = per_task(
            "initial", tasks, lambda _: nn.Sequential(bottleneck(width, width), bottleneck(width, width))
        )
        self.supervise = per_task("supervise", tasks, lambda t: Predictor(width, tasks[t].channels, image_size))
        # Checkpoints contain this name, and the label seeds the weights. Neither can be renamed.
        self.distil = FeatureExchange("distil", list(tasks), width)
        self.heads = per_task("head", tasks, lambda t: DenseHead(width, tasks[t].channels, image_size))

    def forward(
        self, maps: Sequence[Tensor], tasks: Sequence[str]
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
        """Predicts the named tasks; in training, also from their initial features."""
        shared = self.neck(maps)
        features = {task: block(shared) for task, block in self.initial.items()}
        predictions = {task: self.heads[task](self.distil(features, task)) for task in tasks}
        initial = {task: [self.supervise[task](features[task])] for task in tasks} if self.training else {}
        return predictions, initial

    def owned(self, task: str) -> list[nn.Module]:
        """Returns the task's heads and the convolutions that refine its feature."""
        return [self.heads[task], self.supervise[task], *self.distil.owned(task)]
