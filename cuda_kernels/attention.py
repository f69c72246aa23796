"""Check arguments, then launch the kernels on torch's current stream.

Nothing here waits for the device, copies to the host or allocates (apart from `out` where none is given, and in debug
mode): `plan` and the call itself can be captured in a CUDA graph, and intervals, counts, queries and cache may change
between replays. Compiling happens in the constructor: about a second per configuration, once per machine.
"""

import math
import warnings

import numpy as np
import torch

from cuda_kernels.compile import HEAD_DIMS, MAX_GROUP_SIZE, KernelConfig, choose_config, line_words, load, on_device
from cuda_kernels.driver import launch_overlapping

MAX_BATCH = 256
MAX_CAPACITY = 262_144
MAX_KV_HEADS = 65_535
DTYPES = {torch.bfloat16: 80, torch.float16: 75}
"""Element types, and the oldest architecture that has them in its tensor cores."""
LOG2_E = math.log2(math.e)
MAX_PLAN_THREADS = 1024
MOST_ROWS_OF_ONE_PLAN_BLOCK = 64
WRONG = {
    1: "count outside [0, max_spans]",
    2: "interval outside [0, capacity) or empty",
    4: "intervals not sorted or overlapping",
}


class CudaUnavailable(RuntimeError):
    """The kernels cannot run here; the message says why."""


class BadIntervals(ValueError):
    """Debug mode found intervals that break the contract."""


class SpanAttention:
    """Decode attention of one query token per sequence over the intervals that it sees.

    Holds the buffers that the kernels share, so one instance serves one stream at a time.

    Args:
        batch: sequences, 1 to 256.
        num_heads, num_kv_heads: query heads, and key/value heads; at most 16 of the former per one of the latter.
        head_dim: 64, 96 or 128.
        max_spans: most intervals of one sequence, 1 to 262,144.
        dtype: torch.bfloat16 or torch.float16.
        device: a CUDA device.
        debug: check intervals on the device in `plan`, which then waits for it (not for graphs).
        carveout_percent: of a multiprocessor's fast memory that launches ask to be shared memory, as do the kernels
            that run before and after (`DecodeOps.carveout_percent`); None: as the driver chooses, the best by itself.

    Raises:
        ValueError: an argument that the kernels cannot serve; the message names it.
        CudaUnavailable: no such CUDA device, or CuPy is missing.
    """

    def __init__(
        self,
        *,
        batch: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_spans: int,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cuda",
        debug: bool = False,
        carveout_percent: int | None = None,
    ) -> None:
        check_shape(batch, num_heads, num_kv_heads, head_dim, max_spans, dtype)
        self.device = cuda_device(device)
        require_dtype(dtype, self.device)
        properties = torch.cuda.get_device_properties(self.device)
        self.batch, self.num_heads, self.num_kv_heads = batch, num_heads, num_kv_heads
        self.head_dim, self.max_spans, self.dtype, self.debug = head_dim, max_spans, dtype, debug
        num_sms, limit = properties.multi_processor_count, properties.shared_memory_per_block_optin
        config = choose_config(head_dim, num_heads // num_kv_heads, dtype is torch.bfloat16, batch, limit)
        # A persistent grid: as many blocks as run at the same time.
        by_memory = properties.shared_memory_per_multiprocessor // (config.shared_bytes(batch) + 1024)
        self._num_blocks = num_sms * max(1, min(by_memory, config.blocks_per_sm))
        self._num_threads = 32 * config.num_warps
        self._shared_bytes = config.shared_bytes(batch)
        self._plan = load("plan.cu", "selfspan_plan", config.macros(), self.device.index)
        self._attend = load("attention.cu", "selfspan_attention", config.macros(), self.device.index)
        self._launch = Launcher(self.device, carveout_percent)
        with on_device(self.device.index):
            # Of the kernel, which other instances launch too; a launch takes what it asks for.
            self._attend.max_dynamic_shared_size_bytes = limit
        self._is_planned_for: int | None = None
        self._is_plan_done = False
        self._allocate(config)

    def _allocate(self, config: KernelConfig) -> None:
        integers = {"dtype": torch.int32, "device": self.device}
        self._spans = torch.zeros(self.batch, self.max_spans, 2, **integers)
        self._line = torch.zeros(line_words(self.batch), **integers)
        num_units = self.batch * self.num_kv_heads
        self._arrived = torch.zeros(num_units, **integers)
        self._num_done = torch.zeros(1, **integers)
        self._errors = torch.zeros(self.batch, **integers)
        num_states = config.num_states(num_units, self._num_blocks)
        self._states = torch.zeros(num_states, config.state_floats, dtype=torch.float32, device=self.device)

    def plan(self, intervals: torch.Tensor, counts: torch.Tensor, capacity: int) -> None:
        """Take in what every sequence sees; once per decode step, for all layers.

        Captured in a graph, it belongs into the same one as the calls that follow it: the first of them waits until
        it is done, those behind rely on that.

        Args:
            intervals: int32 `[batch, max_spans, 2]` on the device, contiguous: half-open `[start, end)`, sorted,
                disjoint. Entries from the count on do not matter.
            counts: int32 `[batch]` on the device; 0 for padding rows.
            capacity: of the cache; nothing beyond it is ever read.

        Raises:
            ValueError: a wrong argument, named.
            BadIntervals: debug mode only; nothing is planned then.
        """
        self._check("intervals", intervals, (self.batch, self.max_spans, 2), torch.int32, contiguous=True)
        self._check("counts", counts, (self.batch,), torch.int32, contiguous=True)
        check_capacity(self.batch, self.num_kv_heads, capacity)
        # From here on the last plan is being overwritten.
        self._is_planned_for, self._is_plan_done = None, False
        arguments = (
            _pointer(intervals),
            _pointer(counts),
            np.int32(self.batch),
            np.int32(self.max_spans),
            np.int32(capacity),
            _pointer(self._spans),
            _pointer(self._line),
            _pointer(self._arrived),
            _pointer(self._num_done),
            np.int32(self.num_kv_heads),
            np.int32(self._num_blocks),
            _pointer(self._errors if self.debug else None),
        )
        self._launch(self._plan, *plan_grid(self.batch, self.max_spans), arguments)
        if self.debug:
            self._raise_errors()
        self._is_planned_for = capacity

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scale: float | None = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention over the planned intervals.

        Args:
            query: `[batch, num_heads, head_dim]`.
            keys, values: `[batch, num_kv_heads, capacity, head_dim]`; any strides that are multiples of 8 elements, the
                last dimension contiguous.
            scale: multiplies the scores; None: head_dim ** -0.5.
            out: `[batch, num_heads, head_dim]` to write to, of strides that give each row and head room of its own;
                None allocates.
            lse: float32 `[batch, num_heads]`, contiguous: takes the log-sum-exp of the scaled scores.

        Returns:
            `out`; zeros (and an lse of minus infinity) for sequences without intervals.

        Raises:
            ValueError: a wrong argument, named; or nothing is planned.
        """
        if self._is_planned_for is None:
            raise ValueError("nothing is planned: call plan(intervals, counts, capacity) first")
        vectors = (self.batch, self.num_heads, self.head_dim)
        cache = (self.batch, self.num_kv_heads, self._is_planned_for, self.head_dim)
        self._check("query", query, vectors, self.dtype)
        self._check("keys", keys, cache, self.dtype)
        self._check("values", values, cache, self.dtype)
        if out is None:
            out = torch.empty(vectors, dtype=self.dtype, device=self.device)
        else:
            self._check("out", out, vectors, self.dtype)
            check_no_overlap("out", out)
        if lse is not None:
            self._check("lse", lse, vectors[:2], torch.float32, contiguous=True)
        scale = self.head_dim**-0.5 if scale is None else scale
        if not math.isfinite(scale):
            raise ValueError(f"scale is a finite number, not {scale}")
        arguments = (
            *_strided(query),
            *_strided(keys),
            *_strided(values),
            *_strided(out),
            _pointer(lse),
            _pointer(self._spans),
            _pointer(self._line),
            np.int32(self.batch),
            np.int32(self.max_spans),
            np.float32(scale * LOG2_E),
            _pointer(self._states),
            _pointer(self._arrived),
            np.int32(self._is_plan_done),
        )
        self._launch(self._attend, self._num_blocks, self._num_threads, arguments, self._shared_bytes)
        self._is_plan_done = True
        return out

    def _check(
        self, name: str, tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype, contiguous: bool = False
    ) -> None:
        check_tensor(name, tensor, shape, dtype, self.device, contiguous)

    def _raise_errors(self) -> None:
        for row, code in enumerate(self._errors.tolist()):
            if code:
                reasons = "; ".join(text for bit, text in WRONG.items() if code & bit)
                raise BadIntervals(f"intervals of row {row}: {reasons}")


class Launcher:
    """Launches kernels on torch's current stream of one device.

    From sm_90 on a kernel begins while the one before still runs: all of this folder wait for what that one writes.

    Args:
        device: a CUDA device with its index.
        carveout_percent: see `launch_overlapping`; only from sm_90 on.
    """

    def __init__(self, device: torch.device, carveout_percent: int | None = None) -> None:
        self._device, self._carveout_percent = device, carveout_percent
        self._overlap = torch.cuda.get_device_capability(device) >= (9, 0)
        self._streams: dict[int, object] = {}

    def __call__(
        self,
        kernel,
        num_blocks: int | tuple[int, int],
        num_threads: int,
        arguments: tuple,
        shared_bytes: int = 0,
    ) -> None:
        """Launch one kernel (`cupy.RawKernel`) on so many blocks (of one dimension, or two) and threads of each."""
        pointer = torch.cuda.current_stream(self._device).cuda_stream
        grid = (num_blocks,) if isinstance(num_blocks, int) else num_blocks
        if self._overlap:
            with on_device(self._device.index):
                launch_overlapping(
                    kernel.kernel.ptr, pointer, grid, num_threads, arguments, shared_bytes, self._carveout_percent
                )
            return
        if pointer not in self._streams:
            self._streams[pointer] = foreign_stream(pointer, self._device)
        with on_device(self._device.index), self._streams[pointer]:
            kernel(grid, (num_threads,), arguments, shared_mem=shared_bytes)


def plan_grid(batch: int, max_spans: int) -> tuple[int, int]:
    """Blocks of the plan kernel, and threads of each.

    One block that has a warp for every row, where that has little to do: of several blocks the last has to hear from
    all others, which takes a microsecond. Else a block per row, a thread per span.
    """
    if 1 < batch <= MOST_ROWS_OF_ONE_PLAN_BLOCK and max_spans <= 32:
        return 1, 32 * min(batch, 32)
    return batch, min(MAX_PLAN_THREADS, -(-max_spans // 32) * 32)


def check_shape(
    batch: int, num_heads: int, num_kv_heads: int, head_dim: int, max_spans: int, dtype: torch.dtype
) -> None:
    """Raise a ValueError that names the first argument that the kernels cannot serve."""
    numbers = {"batch": batch, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    for name, number in (numbers | {"max_spans": max_spans}).items():
        check_int(name, number)
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"batch is 1 to {MAX_BATCH}, not {batch}")
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(f"num_heads ({num_heads}) is no multiple of num_kv_heads ({num_kv_heads})")
    if num_heads // num_kv_heads > MAX_GROUP_SIZE:
        raise ValueError(f"num_heads: at most {MAX_GROUP_SIZE} per key/value head, not {num_heads // num_kv_heads}")
    if num_kv_heads > MAX_KV_HEADS:
        raise ValueError(f"num_kv_heads is at most {MAX_KV_HEADS}, not {num_kv_heads}")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim is one of {', '.join(map(str, HEAD_DIMS))}, not {head_dim}")
    # A row has no more intervals than tokens.
    if not 1 <= max_spans <= MAX_CAPACITY:
        raise ValueError(f"max_spans is 1 to {MAX_CAPACITY}, not {max_spans}")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(f"dtype is torch.bfloat16 or torch.float16, not {dtype!r}")


def check_int(name: str, number: int) -> None:
    """Raise a ValueError that names what is no int; a bool is none."""
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError(f"{name} is an int, not {number!r}")


def check_capacity(batch: int, num_kv_heads: int, capacity: int) -> None:
    """Raise a ValueError if no plan can be made for a cache of so many tokens per row."""
    check_int("capacity", capacity)
    if not 1 <= capacity <= MAX_CAPACITY:
        raise ValueError(f"capacity is 1 to {MAX_CAPACITY}, not {capacity}")
    # The line (schedule.cuh) counts with 31 bits; 32 tokens are room for what units are rounded up to.
    if batch * num_kv_heads * (capacity + 32) >= 2**31:
        raise ValueError(f"capacity: {batch} x {num_kv_heads} x {capacity} are too many tokens for one plan")


def check_tensor(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    contiguous: bool = False,
) -> None:
    """Raise a ValueError that names the tensor and what is wrong with it.

    Floating-point tensors of 16 bits are read in pieces of 16 bytes: their strides and start have to allow that.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name} is a tensor, not {type(tensor).__name__}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, and the kernels run on {device}")
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, and has to be {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, and has to have {shape}")
    if contiguous:
        # Pairs of int32 are read as one.
        if not tensor.is_contiguous() or tensor.data_ptr() % 8:
            raise ValueError(f"{name} is not contiguous from an address that is a multiple of 8 bytes")
        return
    if tensor.stride(-1) != 1:
        raise ValueError(f"{name}: the last dimension is not contiguous")
    outer = [step for size, step in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1]
    if any(step % 8 for step in outer) or tensor.data_ptr() % 16:
        raise ValueError(
            f"{name}: strides are multiples of 8 elements and the start of 16 bytes; strides: {tensor.stride()}"
        )


def check_no_overlap(name: str, tensor: torch.Tensor) -> None:
    """Raise a ValueError unless every dimension steps over all that the dimensions of smaller steps span.

    Refuses a few layouts without overlap, too, whose dimensions are interleaved.
    """
    spanned = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step < spanned:
            raise ValueError(f"{name}: rows or heads lie on each other; strides: {tensor.stride()}")
        spanned += step * (size - 1)


def require_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Raise a ValueError where a GPU's tensor cores do not have an element type."""
    properties = torch.cuda.get_device_properties(device)
    architecture = 10 * properties.major + properties.minor
    if architecture < DTYPES[dtype]:
        raise ValueError(f"dtype: {dtype} needs an sm_{DTYPES[dtype]} GPU, and {properties.name} is sm_{architecture}")


def cuda_device(device: torch.device | str) -> torch.device:
    """The device with its index.

    Raises:
        ValueError: `device` says no device.
        CudaUnavailable: it is no CUDA device, there is none or none of that number, or CuPy is missing.
    """
    if not isinstance(device, torch.device | str):
        raise ValueError(f"device is a torch.device or a string, not {device!r}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is none that torch knows, like 'cuda' or 'cuda:0'") from error
    if device.type != "cuda":
        raise CudaUnavailable(f"the CUDA kernels need a CUDA device, not {device.type!r}")
    if not torch.cuda.is_available():
        raise CudaUnavailable("the CUDA kernels need a CUDA device, and torch finds none")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise CudaUnavailable(f"device: there is no {device}, torch finds {torch.cuda.device_count()} CUDA device(s)")
    try:
        import cupy  # noqa: F401
    except ImportError as error:
        raise CudaUnavailable("the CUDA kernels need CuPy: pip install cupy-cuda13x") from error
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def foreign_stream(pointer: int, device: torch.device):
    """torch's stream for CuPy, which neither owns nor destroys it."""
    import cupy

    with warnings.catch_warnings():
        # Its successor, Stream.from_external, would destroy the stream with the object.
        warnings.simplefilter("ignore", DeprecationWarning)
        return cupy.cuda.ExternalStream(pointer, device.index)


def _pointer(tensor: torch.Tensor | None) -> np.uint64:
    return np.uint64(0 if tensor is None else tensor.data_ptr())


def _strided(tensor: torch.Tensor) -> tuple[np.uint64, ...]:
    """The pointer, and the strides of all dimensions but the last, as the kernel takes them."""
    return (_pointer(tensor), *(np.int64(step) for step in tensor.stride()[:-1]))
