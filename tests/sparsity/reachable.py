"""Which edges of a network are alive, found a second way: by explicit maps of booleans in numpy, op by op.

Nothing of ``dst.sparsity.repair`` is used, nor autograd, nor the networks' own forward: each kind of module in the zoo
says here what it joins to what. Unrolled over the places of the maps.
"""

import numpy as np
from torch import nn


class Tape:
    """Maps of booleans, each [channels, height, width] (or [units]), and what joins them, in the order of computing."""

    def __init__(self, model, shape, masks):
        """``masks``: module name -> boolean array; layers that are not in it are dense."""
        self.names = {id(module): name for name, module in model.named_modules()}
        self.masks = masks
        self.forward, self.backward, self.ops = [np.ones(shape, dtype=bool)], [], []
        self.output = self.run(model, 0)
        self.backward = [np.zeros_like(values) for values in self.forward]
        self.backward[self.output][:] = True
        self.alive = {}
        for back in reversed(self.ops):
            back()

    def new(self, values):
        self.forward.append(values)
        return len(self.forward) - 1

    def run(self, module, x):
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            return self.conv(module, x)
        if isinstance(module, nn.Linear):
            return self.linear(module, x)
        if isinstance(module, nn.MaxPool2d):
            return self.pool(x, *(_one(v) for v in (module.kernel_size, module.stride, module.padding)))
        if isinstance(module, nn.AdaptiveAvgPool2d):
            return self.whole(x)
        if isinstance(module, nn.Flatten):
            return self.reshape(x, -1)
        if isinstance(module, nn.Sequential):
            for child in module:
                x = self.run(child, x)
            return x
        if kind == "PreActivationBlock":
            shortcut = x if module.shortcut is None else self.run(module.shortcut, x)
            return self.add(self.run(module.conv2, self.run(module.conv1, x)), shortcut)
        if kind in ("BasicBlock", "Bottleneck"):
            skip = getattr(module, "shortcut", None) or getattr(module, "downsample", None)
            y = self.run(module.conv2, self.run(module.conv1, x))
            y = self.run(module.conv3, y) if kind == "Bottleneck" else y
            return self.add(y, x if skip is None else self.run(skip, x))
        if kind == "ResNet":
            x = self.run(module.maxpool, self.run(module.conv1, x))
            for row in (module.layer1, module.layer2, module.layer3, module.layer4):
                x = self.run(row, x)
            return self.run(module.fc, self.reshape(self.whole(x), -1))
        assert isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.ReLU | nn.Dropout), kind
        return x

    def mask(self, module):
        found = self.masks.get(self.names[id(module)])
        return np.ones(tuple(module.weight.shape), dtype=bool) if found is None else found

    def conv(self, module, x):
        assert module.groups == 1
        mask, values = self.mask(module), self.forward[x]
        _, height, width = values.shape
        (stride, _), (pad, _) = module.stride, module.padding
        kernel = mask.shape[2:]
        size = [(n + 2 * pad - k) // stride + 1 for n, k in zip((height, width), kernel, strict=True)]
        padded = np.zeros((len(values), height + 2 * pad, width + 2 * pad), dtype=bool)
        padded[:, pad : pad + height, pad : pad + width] = values
        views = {
            (a, b): (slice(a, a + stride * size[0], stride), slice(b, b + stride * size[1], stride))
            for a in range(kernel[0])
            for b in range(kernel[1])
        }
        out = np.zeros((len(mask), *size), dtype=bool)
        for (a, b), (rows, columns) in views.items():
            seen = padded[:, rows, columns].reshape(len(values), -1)
            out |= _product(mask[:, :, a, b], seen).reshape(out.shape)
        y = self.new(out)

        def back():
            gradient = self.backward[y].reshape(len(mask), -1)
            alive, below = np.zeros_like(mask), np.zeros_like(padded)
            for (a, b), (rows, columns) in views.items():
                seen = padded[:, rows, columns].reshape(len(values), -1)
                alive[:, :, a, b] = _product(gradient, seen.T)
                below[:, rows, columns] |= _product(mask[:, :, a, b].T, gradient).reshape(-1, *size)
            self.backward[x] |= below[:, pad : pad + height, pad : pad + width]
            self.alive[self.names[id(module)]] = alive

        self.ops.append(back)
        return y

    def linear(self, module, x):
        mask, values = self.mask(module), self.forward[x]
        y = self.new((mask & values).any(1))

        def back():
            self.backward[x] |= (mask & self.backward[y][:, None]).any(0)
            self.alive[self.names[id(module)]] = self.backward[y][:, None] & values[None]

        self.ops.append(back)
        return y

    def pool(self, x, kernel, stride, pad):
        values = self.forward[x]
        _, height, width = values.shape
        size = [(n + 2 * pad - kernel) // stride + 1 for n in (height, width)]
        windows = [
            [
                [slice(max(0, place * stride - pad), max(0, place * stride - pad + kernel)) for place in range(n)]
                for n in size
            ]
        ][0]
        out = np.stack([np.stack([values[:, r, c].any((1, 2)) for c in windows[1]], 1) for r in windows[0]], 1)
        y = self.new(out)

        def back():
            for i, r in enumerate(windows[0]):
                for j, c in enumerate(windows[1]):
                    self.backward[x][:, r, c] |= self.backward[y][:, i, j][:, None, None]

        self.ops.append(back)
        return y

    def whole(self, x):
        y = self.new(self.forward[x].any((1, 2), keepdims=True))
        self.ops.append(lambda: self.backward[x].__ior__(self.backward[y]))
        return y

    def reshape(self, x, *shape):
        y = self.new(self.forward[x].reshape(shape))
        self.ops.append(lambda: self.backward[x].__ior__(self.backward[y].reshape(self.forward[x].shape)))
        return y

    def add(self, one, other):
        y = self.new(self.forward[one] | self.forward[other])

        def back():
            self.backward[one] |= self.backward[y]
            self.backward[other] |= self.backward[y]

        self.ops.append(back)
        return y


def _one(value):
    return value[0] if isinstance(value, tuple) else value


def _product(one, other):
    return one.astype(np.float32) @ other.astype(np.float32) > 0


def arrays(layers, masks):
    return {layer.name: mask.cpu().numpy() for layer, mask in zip(layers, masks, strict=True)}


def problems(model, shape, layers, masks):
    """Return what is dead in a masked network and need not be, in words; empty if nothing is."""
    masks = arrays(layers, masks)
    full, now = Tape(model, shape, {}), Tape(model, shape, masks)
    found = []
    for name, mask in masks.items():
        able, alive = full.alive[name], now.alive[name] & mask
        if (mask & able & ~alive).any():
            found.append(f"{name}: {(mask & able & ~alive).sum()} edges")
        for axis, kind in ((0, "outputs"), (1, "inputs")):
            others = tuple(i for i in range(mask.ndim) if i != axis)
            dead = able.any(others) & ~alive.any(others)
            if dead.any():
                found.append(f"{name}: {dead.sum()} {kind}")
    channels = now.backward[0] & full.backward[0]
    if not channels.reshape(len(channels), -1).any(1).all():
        found.append("an input channel reaches no class")
    if channels.ndim == 1 and not channels.all():
        found.append("an input reaches no class")
    if not now.forward[now.output].all():
        found.append("a class is not reached")
    return found


def silent_edges(model, layers, inputs, labels):
    """Take a batch's gradients; return the weights whose input and unit are never both awake at one place of a map."""
    seen, handles = {}, []
    for layer in layers:

        def watch(module, given, output, name=layer.name):
            seen[name] = given[0].detach().abs()
            output.register_hook(lambda gradient: seen.update({f"{name} back": gradient.abs()}))

        handles.append(layer.places[0].module.register_forward_hook(watch))
    model.zero_grad()
    nn.functional.cross_entropy(model.train()(inputs), labels).backward()
    for handle in handles:
        handle.remove()
    found = []
    for layer in layers:
        module, awake, back = layer.places[0].module, seen[layer.name], seen[f"{layer.name} back"]
        if isinstance(module, nn.Linear):
            together = back.T @ awake
        else:
            together = nn.grad.conv2d_weight(awake, module.weight.shape, back, module.stride, module.padding)
        found.append(together == 0)
    return found
