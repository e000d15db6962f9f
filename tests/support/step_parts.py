"""Small networks, rules and data for tests of a step. Importable on the ranks of a pool."""

from __future__ import annotations

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from mtlbench import testing
from mtlbench.balancing import Balancer
from mtlbench.data import Collate
from mtlbench.method import MTLMethod
from mtlbench.networks.base import MTLNetwork, Outputs
from mtlbench.tasks import Regression
from mtlbench.training import run


class TinyNetwork(MTLNetwork):
    """Predicts at the size of its input; the norm may keep statistics, and dropout may draw."""

    def __init__(self, tasks, norm, dropout):
        super().__init__()
        layer = nn.BatchNorm2d(6) if norm == "batch" else nn.GroupNorm(2, 6)
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), layer, nn.GELU(), nn.Dropout(dropout))
        self.heads = nn.ModuleDict({name: nn.Conv2d(6, task.channels, 1) for name, task in tasks.items()})
        self.dense = {name: task.dense for name, task in tasks.items()}

    def forward(self, image, tasks):
        shared = self.encoder(image.to(self.heads[tasks[0]].weight.dtype) / 255)
        maps = {name: self.heads[name](shared) for name in tasks}
        return Outputs({name: m if self.dense[name] else m.mean((2, 3)) for name, m in maps.items()})

    def task_modules(self, task):
        return [self.heads[task]]


class Tiny(MTLMethod):
    """The tiny network."""

    def __init__(self, spec, *, norm: str = "group", dropout: float = 0.0):
        super().__init__(spec)
        self.norm, self.dropout = norm, dropout

    def build_network(self):
        return TinyNetwork(self.tasks, self.norm, self.dropout)


class _SplitNetwork(MTLNetwork):
    """A trunk for every task of its own, or one for all but ``far``."""

    def __init__(self, tasks, together):
        super().__init__()
        self.group = {name: "all" if together and name != "far" else name for name in tasks}
        self.trunks = nn.ModuleDict(
            {key: TinyNetwork({}, "group", 0.0).encoder for key in dict.fromkeys(self.group.values())}
        )
        self.heads = nn.ModuleDict({name: nn.Conv2d(6, task.channels, 1) for name, task in tasks.items()})
        self.dense = {name: task.dense for name, task in tasks.items()}

    def forward(self, image, tasks):
        image = image.to(self.heads[tasks[0]].weight.dtype) / 255
        maps = {name: self.heads[name](self.trunks[self.group[name]](image)) for name in tasks}
        return Outputs({name: m if self.dense[name] else m.mean((2, 3)) for name, m in maps.items()})

    def task_modules(self, task):
        key = self.group[task]
        return [self.heads[task], *([] if key == "all" else [self.trunks[key]])]


class NothingShared(MTLMethod):
    """Every task has a trunk of its own."""

    def build_network(self):
        return _SplitNetwork(self.tasks, together=False)


class PrivateTrunk(MTLMethod):
    """Task ``far`` has a trunk of its own; the others share one."""

    def build_network(self):
        return _SplitNetwork(self.tasks, together=True)


class _BadNetwork(TinyNetwork):
    def forward(self, image, tasks):
        outputs = super().forward(image, tasks)
        self.steps = getattr(self, "steps", -1) + self.training
        if self.steps == 1:  # The value is 0, but its derivative is not finite.
            far = outputs.predictions["far"]
            outputs.predictions["far"] = far + (0 * far.sum()).sqrt()
        return outputs


class BadGradient(Tiny):
    """Gives task ``far`` a finite loss with a NaN gradient at step 1."""

    def build_network(self):
        return _BadNetwork(self.tasks, self.norm, self.dropout)


class _Negative(Regression):
    def loss(self, prediction, target):
        return -super().loss(prediction, target) - 1


class NegativeLoss(Tiny):
    """The loss of task ``mean`` is below 0."""

    def __init__(self, spec, **options):
        super().__init__(spec, **options)
        self.tasks["mean"] = _Negative("mean")


class Frozen(MTLMethod):
    """The usual network with an encoder that does not learn."""

    def build_network(self):
        network = super().build_network()
        network.encoder.requires_grad_(False)
        return network


class Overflowing(Tiny):
    """Has an infinite gradient at step 1, on rank 1 alone if there are two."""

    def regularisation(self, outputs, batch):
        here = self._state.step == 1 and self.trainer.global_rank == self.trainer.world_size - 1
        return {"huge": (torch.inf if here else 0.0) * self.network.heads["far"].weight.sum()}


class OneSided(Tiny):
    """Has a regulariser on rank 0 alone."""

    def regularisation(self, outputs, batch):
        return {"own": self.network.heads["far"].weight.square().sum()} if self.trainer.global_rank == 0 else {}


class Holding(Tiny):
    """Fails if any part of a step's graph outlives its backward pass."""

    def on_before_optimizer_step(self, optimizer):
        assert (
            not self._state.rows
            and self._state.total is None
            and self._state.extra is None
            and not self._state.representation
        )
        super().on_before_optimizer_step(optimizer)


class OwnRule(MTLMethod):
    """Balances by itself."""

    def gradient_weights(self, gramian, ctx):
        return torch.ones(len(gramian))


class Geometric(Balancer):
    """The geometric mean: not linear in the losses."""

    def combine_losses(self, losses, ctx):
        return losses.log().mean().exp()


class Recording(Balancer):
    """The sum; keeps the losses of every finished step."""

    seen: list = []

    def after_step(self, ctx):
        Recording.seen.append((ctx.step, ctx.active, ctx.losses.clone()))


class Blind(Balancer):
    """Halves the direction."""

    def combine_gradients(self, jacobian, ctx):
        return jacobian.sum(0) / 2


class Momentum(Balancer):
    """Returns the buffer itself that it keeps."""

    def combine_gradients(self, jacobian, ctx):
        if not hasattr(self, "memory"):
            self.register_buffer("memory", torch.zeros_like(jacobian[0]))
        self.memory.mul_(0.9).add_(jacobian.sum(0))
        return self.memory


class CopiedMomentum(Momentum):
    """The same, but returns a copy."""

    def combine_gradients(self, jacobian, ctx):
        return super().combine_gradients(jacobian, ctx).clone()


class Looking(Blind):
    """As `Blind`, and looks ahead in every hook, in two ways."""

    seen: list = []

    def combine_losses(self, losses, ctx):
        self._look(ctx, None)
        change = torch.zeros(self.size, dtype=losses.dtype)
        change[: self.weights] = 0.1
        self._look(ctx, change)
        return losses.sum()

    def combine_gradients(self, jacobian, ctx):
        self._look(ctx, jacobian[0])
        return super().combine_gradients(jacobian, ctx)

    def after_step(self, ctx):
        self._look(ctx, None)

    def _look(self, ctx, change):
        before = torch.random.get_rng_state()
        Looking.seen.append((ctx.step, change is None, ctx.losses, ctx.lookahead(change)))
        assert torch.equal(torch.random.get_rng_state(), before)

    weights = 6 * 3 * 9  # of the convolution, which autocast rounds and keeps
    size = weights + 6 + 12  # shared parameters of the tiny network


class _Changed:
    def __init__(self, samples, change):
        self.samples, self.change = samples, change

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.change(index, self.samples[index])


class Changing(testing.ToyData):
    """Toy data whose training samples go through `change(index, sample)`."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        samples = _Changed(loader.dataset, self.change)
        return DataLoader(samples, batch_sampler=loader.batch_sampler, collate_fn=self._loading()["collate_fn"])


class Broken(Changing):
    """Task ``mean`` has a label at step 3 whose loss overflows."""

    def change(self, index, sample):
        if index == 3 * self.batch_size:
            sample["targets"]["mean"] = torch.tensor(1e200, dtype=torch.float64)
        return sample


class Bare(Changing):
    """No sample of step 1 has any label."""

    def change(self, index, sample):
        return {**sample, "targets": {}} if index // self.batch_size == 1 else sample


class Streams(Changing):
    """Two input streams: whole images with ``kind`` and ``far``, cut ones with ``shape`` and ``mean``."""

    NAMES = {"whole": ("kind", "far"), "cut": ("shape", "mean")}

    def change(self, index, sample):
        return sample

    def _loading(self):
        return {**super()._loading(), "collate_fn": self._collate}

    def _collate(self, samples):
        cut = [self._cut(sample) for sample in samples]
        both = {"whole": samples, "cut": cut}
        return {"streams": {key: Collate({n: self.tasks[n] for n in self.NAMES[key]})(both[key]) for key in both}}

    @staticmethod
    def _cut(sample):
        targets = {name: t[..., :8, :12] if t.ndim else t for name, t in sample["targets"].items()}
        return {**sample, "image": sample["image"][:, :8, :12], "targets": targets}


class EqualStreams(Streams):
    """Both streams at one size."""

    @staticmethod
    def _cut(sample):
        return sample


def trained_in_fp16(spec, folder, scale=2.0**8, **options):
    """Trains with a gradient scaler on the CPU, which Lightning's own switch refuses; returns weights and scale."""
    build, plugins = run.build_trainer, []

    def with_scaler(*args):
        trainer = build(*args)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        plugins.append(MixedPrecision("16-mixed", "cpu", scaler=scaler))
        trainer.strategy.precision_plugin = plugins[0]
        assert trainer.precision == "16-mixed"
        return trainer

    run.build_trainer = with_scaler
    try:
        return testing.trained(spec, folder, **options), plugins[0].scaler.get_scale()
    finally:
        run.build_trainer = build


class OwnHeads:
    """Mixed into a method: keeps the gradients that heads end with, and those of each task's own loss."""

    seen: list = []

    def backward(self, loss):
        self.own = {
            task: torch.autograd.grad(self._state.rows[i], self.network.task_parameters(task), retain_graph=True)
            for i, task in enumerate(self.tasks)
            if i in self._state.rows
        }
        super().backward(loss)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        found = {task: [p.grad.clone() for p in self.network.task_parameters(task)] for task in self.own}
        OwnHeads.seen.append((self.own, found))

    @classmethod
    def check(cls, train, steps):
        """Trains, and compares the two in every step."""
        cls.seen.clear()
        train()
        assert len(cls.seen) == steps and any(own for own, _ in cls.seen)
        for own, found in cls.seen:
            for task, gradient in own.items():
                for one, other in zip(gradient, found[task], strict=True):
                    torch.testing.assert_close(one, other)
