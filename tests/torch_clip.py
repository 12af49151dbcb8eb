"""CLIP in PyTorch, written from its paper and the keys of its files, for the tests that compare with it.

Modules have the names that OpenAI's state dicts have, so that `state_dict()` is one of theirs.
"""

import torch
from torch import nn
from torch.nn import functional


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(width // 64, 1), batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width) for _ in range(depth)])

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, width, depth, patch, size, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(1 + (size // patch) ** 2, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, depth)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, x):
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    """The stride is that of means before the last convolution and before the shortcut's."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.mean = nn.AvgPool2d(stride)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.mean(functional.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(self.mean(x))))


class AttentionPool(nn.Module):
    """The mean of all cells is the only query; places are resampled for other grids than `side` x `side`."""

    def __init__(self, side, channels, dim):
        super().__init__()
        self.side, self.heads = side, max(channels // 64, 1)
        self.positional_embedding = nn.Parameter(torch.randn(1 + side**2, channels))
        for name, outputs in (("q", channels), ("k", channels), ("v", channels), ("c", dim)):
            setattr(self, f"{name}_proj", nn.Linear(channels, outputs))

    def places(self, height, width):
        mean, cells = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = cells.T.unflatten(1, (self.side, self.side))[None]
        if (height, width) != (self.side, self.side):
            grid = functional.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return torch.cat([mean, grid[0].flatten(1).T])

    def forward(self, x):
        places = self.places(*x.shape[2:])
        x = x.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + places
        query, key, value = (
            project(y).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, y in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        return self.c_proj(functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1))


class ResNet(nn.Module):
    def __init__(self, width, depths, dim, size):
        super().__init__()
        half = width // 2
        for i, (inputs, outputs, stride) in enumerate(((3, half, 2), (half, half, 1), (half, width, 1)), 1):
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(outputs))
        inputs = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, width * 2**i, 2 if i and not j else 1))
                inputs = 4 * width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(size // 32, inputs, dim)

    def maps(self, x):
        """The stem's and the four stages' maps."""
        for i in (1, 2, 3):
            x = functional.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        found = [functional.avg_pool2d(x, 2)]
        for i in (1, 2, 3, 4):
            found.append(getattr(self, f"layer{i}")(found[-1]))
        return found

    def forward(self, x):
        return self.attnpool(self.maps(x)[-1])


class TextTower(nn.Module):
    def __init__(self, vocabulary, width, depth, length, dim):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(length, width))
        self.transformer = Transformer(width, depth)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, dim))

    def encode_text(self, ids):
        """Of the greatest id in each text, the end-of-text token; a token sees those before it."""
        mask = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]], mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


class Clip(TextTower):
    def __init__(self, visual, **text):
        super().__init__(**text)
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
