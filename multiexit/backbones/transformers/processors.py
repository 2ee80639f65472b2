"""How images are read for networks of transformers, by their image processor."""

from pathlib import Path
from typing import Any

from multiexit.backbones.transformers import configs
from multiexit.backbones.vision.own_images import OwnImages
from multiexit.files.unreadable import reason

KNOWN = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")

FILES = ("preprocessor_config.json", "processor_config.json")


def from_name(name: str, pretrained: bool) -> OwnImages | dict[str, Any] | None:
    """What the processor of a hub name or folder says; without one, its configuration the size.

    Args:
        name: of the hub, or the folder.
        pretrained: is not asked: such a network comes with its weights.

    Raises:
        ValueError: a processor that can't be read, or needs code of its own; a hub that can't be
            asked whether there is one.
    """
    del pretrained
    from PIL import Image
    from transformers import AutoImageProcessor
    from transformers.image_processing_utils import BaseImageProcessor

    config = configs.check_source(name)
    try:
        BaseImageProcessor.get_image_processor_dict(name)
    except OSError:
        _check_none(name)
        size = (config.get("vision_config") or config).get("image_size")
        return {"shape": [3, size, size]} if isinstance(size, int) else None
    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            name, backend="pil", trust_remote_code=False
        )
        settings = processor.to_dict()
    except Exception as error:  # the library's parts raise all kinds for a damaged file
        raise ValueError(f"no image processor for {name!r}: {reason(name, error)}") from error
    mean, std = _normalisation(settings)
    others = [key for key, on in settings.items() if key[:3] == "do_" and on and key not in KNOWN]
    return OwnImages(
        f"{name}: its {' with '.join([type(processor).__name__, *others])}",
        lambda image: processor(image, return_tensors="pt")["pixel_values"][0],
        mean,
        std,
        Image.Resampling(int(settings.get("resample") or 0)).name.lower(),
        _sizes(settings),
        "floor",
    )


def from_instance(model: Any) -> OwnImages | dict[str, Any] | None:
    """What the processor says of the name that a network was loaded by, if there is any."""
    name = getattr(model, "name_or_path", "")
    return from_name(name, True) if name else None


def _check_none(name: str) -> None:
    """Refuse a name of the hub that may have a processor: the hub, or its cache, has to say no."""
    import huggingface_hub as hub

    for file in () if Path(name).is_dir() else FILES:
        try:
            hub.hf_hub_download(name, file)
        except Exception as error:  # offline, or whatever the connection says
            local = isinstance(error, hub.errors.LocalEntryNotFoundError)
            if isinstance(error, hub.errors.EntryNotFoundError) and not local:
                continue
            if hub.try_to_load_from_cache(name, file) is hub._CACHED_NO_EXIST:
                continue
            raise ValueError(
                f"whether {name!r} has an image processor isn't known, the hub can't be reached: "
                "check the network, or give --image-size and --normalisation imagenet (in Python, "
                "leave preparation out)"
            ) from error


def _normalisation(settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The mean and deviation of pixels in 0..1: (f·255·x − mean) / std by the factor f."""
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1
    scale = round(float(factor) * 255, 9)
    if not settings.get("do_normalize", True):
        return [0.0] * 3, [1 / scale] * 3
    mean, std = (_three(settings[key]) for key in ("image_mean", "image_std"))
    if settings.get("include_top"):  # EfficientNet divides twice
        std = [x * x for x in std]
    return [x / scale for x in mean], [x / scale for x in std]


def _three(numbers: Any) -> list[float]:
    return [float(numbers)] * 3 if isinstance(numbers, int | float) else [*map(float, numbers)]


def _sizes(settings: dict[str, Any]) -> list[int | list[int]]:
    """What the size before the crop may be: processors read one setting in several ways."""
    size = settings.get("size") or {}
    short, height, width = (size.get(key) for key in ("shortest_edge", "height", "width"))
    crop_pct = settings.get("crop_pct") or 1
    sizes: list[int | list[int]] = [[height, width]] if height and width else []
    if height and height == width:
        sizes += [int(height / crop_pct)]
    if short:
        sizes += [short, int(short / crop_pct), [short, short], int(256 / 224 * short)]
    return sizes
