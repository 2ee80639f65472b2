"""Settings of transformers networks, from folders and descriptions, checked and partly followed."""

import copy
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils.import_utils import is_flash_attn_2_available, is_flash_attn_3_available

from multiexit.backbones.specs import ATTENTION, LARGEST
from multiexit.files import schema
from multiexit.files.json_files import read_json
from multiexit.files.paths import regular_file
from multiexit.files.unreadable import reason

NEEDED = (
    *("vocab_size", "max_position_embeddings", "num_hidden_layers", "n_layers", "hidden_size"),
    *("dim", "num_attention_heads", "n_heads", "intermediate_size", "hidden_dim", "hidden_act"),
    *("activation", "layer_norm_eps", "embedding_size", "num_hidden_groups"),
)
"""Settings that make the network what it is: a description has those that its type knows."""

SPECIAL = {
    **dict.fromkeys(("num_hidden_layers", "n_layers"), schema.whole(1, 1000)),
    **dict.fromkeys(("num_hidden_groups", "inner_group_num"), schema.whole(1, 1000)),
    **dict.fromkeys(
        ("num_attention_heads", "n_heads"),
        schema.either(schema.whole(1, 1000), schema.listed(schema.whole(1, 1000), 1, 1000)),
    ),
    "layer_norm_eps": schema.number(0, 1),
    "initializer_range": schema.number(0, 1000),
    "architectures": schema.listed(schema.text),
    "dtype": schema.text,
    "problem_type": schema.text,
}
"""Checks of settings whose usual value's type doesn't say enough."""

UNLISTED = (
    *("position_buckets", "share_att_key", "norm_rel_ebd"),
    *("conv_kernel_size", "conv_groups", "conv_act"),
)
"""Settings that DeBERTa's networks read and its configuration doesn't list."""

CODE = ("auto_map", "custom_pipelines", "custom_generate")
FETCHED = ("quantization_config", "kernel_config", "use_kernels")
READ = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "preprocessor_config.json", "processor_config.json"),
    "adapter_config.json",
)
"""The files of a folder that steer what is loaded."""

TOKENIZER = ("*tokenizer*", "*vocab*", "*.model")
"""The files of a folder of which a tokenizer has one at least."""

ONLY = {"trust_remote_code": False, "use_safetensors": True}
"""With what everything is loaded that a name or a folder names."""


def check_attention(config: Any) -> None:
    """Refuse a network of text whose attention has masks that aren't tensors, by a ValueError."""
    if config._attn_implementation == "flex_attention":
        raise ValueError(
            "flex_attention's mask can't lose rows as inputs leave: load the model with "
            "attn_implementation='sdpa' or 'eager'"
        )


def config_from_spec(settings: dict[str, Any], attention: str | None = None) -> PretrainedConfig:
    """The settings that a saved description has, of those that this type of network knows.

    Flags and numbers that it doesn't know are kept too, as its network may read them; other
    settings, such as where a checkpoint once came from, are left out.

    Raises:
        ValueError: code of its own, or values of another type than the network's usual ones.
    """
    check_settings(settings, "backbone.config")
    installed = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
    }
    # One that is missing, transformers would fetch from the hub.
    if attention in installed and not installed[attention]():
        raise ValueError(
            f"backbone.attention is {attention!r}, and flash_attn isn't installed here: install "
            "it, or write 'sdpa', which gives the same up to rounding"
        )
    if settings["model_type"] not in CONFIG_MAPPING:
        raise schema.wrong(
            "backbone.config.model_type", settings["model_type"], "a type that transformers knows"
        )
    defaults = {**_default_settings(settings["model_type"]), "model_type": ""}
    missing = [key for key in NEEDED if key in defaults and key not in settings]
    if missing:
        raise ValueError(f"backbone.config lacks {', '.join(missing)}")
    known = {
        key: value
        for key, value in settings.items()
        if key in defaults or key in UNLISTED or (key[0] != "_" and _is_number(value))
    }
    return AutoConfig.for_model(**copy.deepcopy(known))  # some networks add to their settings


def _is_number(value: Any) -> bool:
    """Whether it is a flag or number: some networks read such settings without listing them."""
    return value is None or isinstance(value, bool | int | float)


def check_settings(settings: Any, where: str) -> None:
    """Refuse settings that name code or ask for another network, or have values of other types.

    Raises:
        ValueError: with the key, its value, and what would be right.
    """
    schema.table({}, rest=schema.plain)(where, settings)
    check_code(settings, where)
    for key in ("attn_implementation", "_attn_implementation"):
        schema.optional(schema.one_of(*ATTENTION, "flex_attention"))(
            f"{where}.{key}", settings.get(key)
        )
    for key in FETCHED:
        if settings.get(key):
            raise ValueError(f"{where} has {key!r}: such a network can't be taken apart")
    defaults = _default_settings(settings.get("model_type"))
    for key, value in settings.items():
        if key in defaults and (value is not None or key in NEEDED):
            _value_check(key, defaults[key])(f"{where}.{key}", value)


def check_code(settings: dict[str, Any], where: str) -> None:
    """Refuse settings that name code of their own, by a ValueError."""
    for key in CODE:
        if settings.get(key):
            raise ValueError(
                f"{where} names code of its own ({key}: {schema.short(settings[key])}), and "
                "nothing that a folder names is run: load it yourself, if you trust it, and wrap "
                "the instance"
            )


def check_source(name: str, **options: Any) -> dict[str, Any]:
    """Refuse a hub name or folder whose network needs code of its own, or unpickling.

    Returns:
        What its `config.json` says.

    Raises:
        ValueError: what it names, and what to do.
    """
    if options.get("trust_remote_code"):
        raise ValueError(
            "trust_remote_code=True would run what the repository holds: load it yourself with "
            "transformers, if you trust it, and wrap the instance"
        )
    folder = Path(name)
    if folder.is_dir():
        check_folder(folder)
        if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
            raise ValueError(
                f"{name} has its weights as a pickle, which could run code; convert it once, where "
                f"you trust it: AutoModel.from_pretrained({name!r}).save_pretrained(FOLDER)"
            )
    settings, _ = PretrainedConfig.get_config_dict(name, **options)
    check_settings(settings, f"{name}: config.json")
    return settings


def check_tokenizer(name: str) -> None:
    """Refuse a hub name or folder whose tokenizer needs code or files from elsewhere.

    Raises:
        ValueError: what it names, and what to do; a folder without a tokenizer's files.
    """
    folder = Path(name)
    if folder.is_dir():
        check_folder(folder)
        if not any(path for kind in TOKENIZER for path in folder.glob(kind)):
            raise ValueError("the folder holds none: save it there, tokenizer.save_pretrained(…)")
    settings = get_tokenizer_config(name)
    check_code(settings, f"{name}: tokenizer_config.json")
    for key, value in settings.items():
        if not key.endswith("_file") or not isinstance(value, str):
            continue
        target = folder / value
        if target.exists() and not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{name}: tokenizer_config.json has {key} {value!r}, outside the folder: copy the "
                "file there"
            )


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a hub name or folder.

    Raises:
        ValueError: none there, or one that can't be read or needs code or files from elsewhere.
    """
    from transformers import AutoTokenizer

    try:
        check_tokenizer(str(name))
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except Exception as error:  # the library's parts raise all kinds for a damaged file
        raise ValueError(f"no tokenizer for {str(name)!r}: {reason(name, error)}") from error


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files name code, lie elsewhere, or are no files.

    Raises:
        ValueError: with the file's name.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja", ".bin"):
            regular_file(path, folder)
        if path.name in READ:
            settings = read_json(path, folder, finite=False)
            schema.table({}, rest=schema.plain)(str(path), settings)
            check_code(settings, str(path))
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter, not a network: load both with peft and wrap the instance, "
            "or merge them (peft: merge_and_unload) and save that"
        )


def _default_settings(model_type: Any) -> dict[str, Any]:
    """The settings that a type of network knows, with their usual values."""
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        return {}
    return CONFIG_MAPPING[model_type]().to_dict()


def _value_check(key: str, default: Any) -> schema.Check:
    """A check for a setting: of its name, or of the type of its usual value."""
    if key in SPECIAL:
        return SPECIAL[key]
    if "dropout" in key and not isinstance(default, bool):
        return schema.number(0, 1)
    match default:
        case bool():
            return schema.flag
        case int():
            number = schema.whole(min(default, -1 if key.endswith("_id") else 0), LARGEST)
            return schema.either(number, schema.listed(number, 0, 1000))
        case float():
            return schema.number()
        case str():
            return schema.text
        case list() | tuple():
            return schema.listed(schema.plain)
        case dict():
            return schema.table({}, rest=schema.plain)
    return schema.plain
