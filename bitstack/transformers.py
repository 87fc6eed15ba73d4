"""``AutoModelForCausalLM.from_pretrained`` for a directory or hub repository that holds a ``.bstk``.

    from bitstack import BitStackConfig  # or: import bitstack.transformers

    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=BitStackConfig(budget="80MiB"))
    model.bitstack.resize("120MiB")

Importing this module makes the quantization method ``bitstack`` known to transformers. ``bstk init-repo`` writes such a
directory (`bitstack.repository`).

transformers builds the model on the meta device and fills it from ``model.safetensors``, where there is nothing to
read. In between the model is left without any module, so that nothing is allocated or initialised for it; its modules
come back when transformers is through, with packed layers, and the blocks are streamed into them as `bitstack.load`
does it.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, Final

import torch
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

import bsformat
from bsformat.errors import ModelError

from .api import Elastic, fill
from .device_names import checked_dtype
from .loaded import tied_already
from .needs import Use
from .repository import FILE, METHOD, STANDING_IN, hub_uri, placeholder
from .shell import Shell, meta_parameters
from .task import model_class, task_of

#: What a module is made of; the rest of its attributes stay what transformers made them.
_PARTS: Final = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
#: The folder that the model of this thread is being saved to.
_saving: ContextVar[str | None] = ContextVar("bitstack_saving", default=None)


class BitStackConfig(QuantizationConfigMixin):
    """How much of a ``.bstk`` file to load, for ``from_pretrained(..., quantization_config=...)``.

    What a repository says of itself in its ``config.json`` is ``file`` and ``root``; the rest is for who loads it.

    Args:
        budget: resident bytes of the weights: a number, ``80MiB``, ``60%`` of all blocks, or ``auto`` (or None): what
            the device has free, less the cache and the workspace of a ``context``.
        context, batch: what ``auto`` leaves room for, as in `bitstack.load`.
        progressive: return with the smallest useful prefix, and grow in the background, as in `bitstack.load`.
        file: the ``.bstk`` beside ``config.json``; None: ``model.bstk``.
        root: the root digest (64 hexadecimal digits) that it must have.
        uri: read this file instead: a path, ``http(s)://``, ``s3://``, ``hf://``, anything fsspec opens.
        network, cache, storage_options: as in `bitstack.load`.
        unknown: ignored; other versions may have written it.
    """

    def __init__(
        self,
        budget: int | str | None = None,
        *,
        context: int | None = None,
        batch: int = 1,
        progressive: bool | int | str = False,
        file: str | None = None,
        root: str | None = None,
        uri: str | os.PathLike[str] | None = None,
        network: bsformat.Network | None = None,
        cache: bsformat.BlockCache | bool = True,
        storage_options: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        self.quant_method: Any = METHOD
        self.file, self.root = file, root
        self.budget, self.context, self.batch, self.progressive = budget, context, batch, progressive
        self.uri, self.network, self.cache = uri, network, cache
        self.storage_options = dict(storage_options or {})

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From what a ``config.json`` says, which may be anybody's: a name and a root are taken from it, no more.

        Raises:
            ModelError: reason ``repository-file``: they are no text.
        """
        said = {key: config_dict[key] for key in ("file", "root") if config_dict.get(key) is not None}
        for key, value in said.items():
            if not isinstance(value, str):
                raise ModelError(
                    f"config.json: {key} of quantization_config must be text, not {type(value).__name__}",
                    reason="repository-file",
                )
        config = cls(**said)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """What a repository says of itself: not what depends on who loads it."""
        kept = {"quant_method": METHOD, "file": self.file, "root": self.root}
        return {key: value for key, value in kept.items() if value is not None}

    def get_loading_attributes(self) -> dict[str, Any]:
        """What was asked for here and holds over what ``config.json`` says."""
        usual = vars(BitStackConfig())
        return {key: value for key, value in vars(self).items() if value != usual[key]}


class BitStackQuantizer(HfQuantizer):
    """Fills a model of transformers from a ``.bstk``; see the module."""

    requires_calibration = False

    def __init__(self, quantization_config: BitStackConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantization_config: BitStackConfig = quantization_config
        self._device = torch.device("cpu")
        self._dtype = torch.float32
        self._beside: str | None = None

    def update_device_map(self, device_map: Any) -> dict[str, Any] | None:
        """One device for all: the blocks of a file go to one.

        Raises:
            ModelError: reason ``device-map``: it names several, or the disk.
        """
        if device_map is None:
            return None
        if isinstance(device_map, str):  # auto, balanced, balanced_low_0, sequential
            device_map = {"": 0 if torch.cuda.is_available() else "cpu"}
        named = set(map(str, device_map.values()))
        if len(named) != 1 or named & {"disk", "meta"}:
            raise ModelError(
                f"a device map that names {', '.join(sorted(named)) or 'nothing'}: the blocks of a .bstk go to one "
                "device; name it (device_map='cuda:0'), and a budget that fits there",
                reason="device-map",
            )
        device = next(iter(device_map.values()))
        self._device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        return {"": device}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._dtype = checked_dtype(kwargs.get("dtype") or torch.get_default_dtype())
        files = kwargs.get("checkpoint_files") or []
        self._beside = str(files[0]) if files else None
        for part in _PARTS:  # nothing here is loaded, initialised or tied by transformers
            vars(model)[part] = type(vars(model)[part])()
        model._is_hf_initialized = True
        model.all_tied_weights_keys = {}
        model.tie_weights = tied_already
        model._keys_to_ignore_on_load_unexpected = {".*"}
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        bare = copy.deepcopy(model.config)
        with suppress(AttributeError):
            del bare.quantization_config
        with meta_parameters():
            fresh = type(model)._from_config(bare, dtype=self._dtype)
        vars(model).update({part: vars(fresh)[part] for part in _PARTS})
        model.all_tied_weights_keys = fresh.all_tied_weights_keys
        container = bsformat.open(
            self._uri(model),
            root=config.root,
            network=config.network,
            cache=config.cache,
            **config.storage_options,
        )
        try:
            _check_class(model, container)
            shell = Shell(container, device=self._device, dtype=self._dtype, model=model.eval())
            fill(container, shell, config.budget, Use(config.context, config.batch), config.progressive)
        except BaseException:
            container.close()
            raise
        config.root = container.root
        _save_packed(model)
        return model

    def _uri(self, model: Any) -> str | os.PathLike[str]:
        config = self.quantization_config
        if config.uri is not None:
            return config.uri
        name = config.file or FILE
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or ":" in name:
            raise ModelError(
                f"config.json names {name!r}: the .bstk of a repository lies within it", reason="repository-file"
            )
        if self._beside is None:
            raise ModelError(
                "without a directory or a repository there is no .bstk: pass BitStackConfig(uri=…)",
                reason="repository-file",
            )
        local = Path(self._beside).parent / name
        if local.is_file():
            return local
        return hub_uri(model.config.name_or_path, self._beside, name)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """For ``save_pretrained``: the blocks that are resident go into a file of their own, which is written here.

        Raises:
            ModelError: it was not called by ``save_pretrained`` of the model.
        """
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # adapters alone are saved
        folder = _saving.get()
        if folder is None:
            raise ModelError("save it with model.save_pretrained(folder)", where=str(self.quantization_config.file))
        elastic: Elastic = model.bitstack
        _save_blocks(elastic, Path(folder) / FILE, self.quantization_config)
        self.quantization_config.file, self.quantization_config.uri = FILE, None
        return placeholder(elastic.container), {STANDING_IN[0]: STANDING_IN[1]}

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """It is; see `get_state_dict_and_metadata`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are: gradients flow through packed layers to their input."""
        return True

    @property
    def is_compileable(self) -> bool:
        """A packed product is one operator of a compiled graph."""
        return True


def _check_class(model: Any, container: bsformat.Container) -> None:
    """Refuse a class of another task before a tensor without a place does, which says less."""
    try:
        auto_class = model_class(task_of(model.config))
        wanted = auto_class._model_mapping[type(model.config)]
    except (ModelError, KeyError):
        return
    if isinstance(wanted, type) and not isinstance(model, wanted):
        raise ModelError(
            f"holds a {wanted.__name__}, not a {type(model).__name__}: load it with {auto_class.__name__}",
            where=container.uri,
            reason="model-class",
        )


def _save_packed(model: Any) -> None:
    """Let ``save_pretrained`` of this model know where it saves to."""
    usual = type(model).save_pretrained

    @wraps(usual)
    def save_pretrained(save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        with _saving_to(os.fspath(save_directory)):
            return usual(model, save_directory, *args, **kwargs)

    vars(model)["save_pretrained"] = save_pretrained


@contextmanager
def _saving_to(folder: str) -> Iterator[None]:
    token = _saving.set(folder)
    try:
        yield
    finally:
        _saving.reset(token)


def _save_blocks(elastic: Elastic, path: Path, config: BitStackConfig) -> None:
    """Write the resident prefix; the file that it comes from stays as it is."""
    source = elastic.container.uri
    if path.exists():
        if os.path.exists(source) and path.samefile(source):
            return
        path.unlink()
    bsformat.fetch(
        source,
        path,
        elastic.plan.resident_bytes,
        root=elastic.container.root,
        cache=config.cache,
        network=config.network,
        **config.storage_options,
    )


def _register() -> None:
    """Make the method known to transformers; a second call does nothing."""
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    auto.register_quantization_config(METHOD)(BitStackConfig)
    auto.register_quantizer(METHOD)(BitStackQuantizer)
    # Public calls do not say that a config from config.json takes over what the caller asks for; this tuple does.
    known = getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", None)
    if not isinstance(known, tuple):
        import transformers

        raise ModelError(
            f"transformers {transformers.__version__} does not let a quantization_config set a budget: use "
            "bitstack.load, or another version",
            reason="transformers-version",
        )
    auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*known, BitStackConfig)


_register()
