"""Quantiser: makes packed parameters of weights, block of rows after block, by the arithmetic of bitsandbytes.

On the CPU worker threads do it. A block and what is computed of it fit into the cache of a core: for whole weights most
of the time goes into fresh pages for intermediate results, and into torch's threads, which join after each operation.
"""

from __future__ import annotations

from math import gcd, prod
from threading import local
from typing import TYPE_CHECKING, Any

import torch

from shardload._system.heap import give_back
from shardload._system.worker_pool import worker_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from torch import nn

    from shardload.placement.quantisation import Quantisation

_BLOCK = 2**17  # elements that are quantised at one time
_A_NUMBER = 32  # bytes that bitsandbytes' functions take for each of them: several results in float32
_PIECE = 2**20  # elements that a worker takes at one time
_MOST_WORKERS = 8
_GROUP, _OUTER = 64, 256  # numbers with one scale, and scales with one scale, of four bits
_EXACT = frozenset({torch.float16, torch.bfloat16, torch.float32})  # float32 holds their values


class Quantiser:
    """Quantises weights on one device. `package` is bitsandbytes."""

    def __init__(self, quantisation: Quantisation, device: torch.device, package: Any) -> None:
        self.quantisation, self.device, self.package = quantisation, device, package
        self._workers = min(torch.get_num_threads(), _MOST_WORKERS) if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._own = local()

    def nbytes(self, shape: Sequence[int]) -> int:
        """Return the bytes that a weight takes once it is quantised, with its scales."""
        numel = prod(shape)
        if self.quantisation.kind == "int8":
            return numel + 4 * shape[0]
        scales = -(-numel // _GROUP)
        if self.quantisation.nested:
            return -(-numel // 2) + scales + 4 * (-(-scales // _OUTER) + 256)
        return -(-numel // 2) + 4 * scales

    def work_space(self, widths: Sequence[int]) -> int:
        """Return the bytes of blocks that are quantised at one time, for weights with rows of such lengths."""
        most = max((self._step(width, _BLOCK) * width for width in widths), default=0)
        return _A_NUMBER * most * self._workers

    def parameter(self, stored: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
        """Return bitsandbytes' parameter of a weight that would be loaded in `dtype`."""
        if self.quantisation.kind == "int8":
            return self._eight_bits(stored, dtype)
        return self._four_bits(stored, dtype if dtype.itemsize <= 4 else torch.float32)

    def close(self) -> None:
        """End the workers, and give back what their heaps keep: up to 24 MB of four bits."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            give_back()

    # Blocks ---------------------------------------------------------------------------------------------------

    def _step(self, width: int, elements: int) -> int:
        """Return how many rows are taken at one time: of four bits, such as begin with a group."""
        step = 1 if self.quantisation.kind == "int8" else _GROUP // gcd(_GROUP, width)
        return max(elements // (step * width), 1) * step

    def _each_block(self, stored: torch.Tensor, do: Callable[[torch.Tensor, int], None]) -> None:
        """Call `do` with each block of rows and the number of its first one, on the workers if there are some."""
        height, width = stored.shape
        step = self._step(width, _BLOCK)
        piece = max(self._step(width, _PIECE) // step, 1) * step

        @torch.inference_mode()  # each thread has its own mode; a tensor made in it is written to only in it
        def blocks(first: int) -> None:
            for start in range(first, min(first + piece, height), step):
                do(stored[start : min(start + step, first + piece)], start)

        if self._workers == 1 or height <= step:
            for first in range(0, height, piece):
                blocks(first)
            return
        if self._pool is None:
            self._pool = worker_pool(self._workers, "shardload-quantise")
        begun: list[Future[None]] = [self._pool.submit(blocks, first) for first in range(0, height, piece)]
        for each in begun:
            each.result()

    # Int8 -----------------------------------------------------------------------------------------------------

    def _eight_bits(self, stored: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
        numbers = torch.empty(stored.shape, dtype=torch.int8, device=self.device)
        scales = torch.empty(stored.shape[0], dtype=torch.float32, device=self.device)

        def do(block: torch.Tensor, first: int) -> None:
            rows = slice(first, first + len(block))
            if self.device.type == "cpu":
                self._eight_bits_here(block, dtype, numbers[rows], scales[rows])
                return
            half = block.to(self.device, dtype).half()
            numbers[rows], scales[rows], _ = self.package.functional.int8_vectorwise_quant(half)

        self._each_block(stored, do)
        return self.package.nn.Int8Params(  # type: ignore[no-any-return]
            numbers, requires_grad=False, has_fp16_weights=False, CB=numbers, SCB=scales
        )

    def _eight_bits_here(
        self, block: torch.Tensor, dtype: torch.dtype, numbers: torch.Tensor, scales: torch.Tensor
    ) -> None:
        """Do what int8_vectorwise_quant of bitsandbytes does on a CPU, number by number, without new memory."""
        half, single, other = self._memory(block.shape)
        if block.dtype == dtype and dtype in _EXACT:
            # By way of float32, as a cast from bfloat16 to float16 takes three times as long.
            single.copy_(block)
            half.copy_(single)
        else:
            half.copy_(block.to(dtype))
        if dtype != torch.float16 or block.dtype != dtype:
            single.copy_(half)
        torch.abs(single, out=other)
        torch.amax(other, dim=1, out=scales)
        torch.mul(single, (127.0 / scales).unsqueeze(-1), out=single)
        numbers.copy_(single.round_())

    def _memory(self, shape: torch.Size) -> Iterator[torch.Tensor]:
        """Return memory of this thread for a block: one of float16, two of float32."""
        numel = prod(shape)
        own: list[torch.Tensor] = getattr(self._own, "memory", [])
        if not own or own[0].numel() < numel:
            dtypes = torch.float16, torch.float32, torch.float32
            own = self._own.memory = [torch.empty(numel, dtype=dtype) for dtype in dtypes]
        return (each[:numel].view(shape) for each in own)

    # Four bits ------------------------------------------------------------------------------------------------

    def _four_bits(self, stored: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
        wanted, functional = self.quantisation, self.package.functional
        width, numel = stored.shape[1], stored.numel()
        packed = torch.empty(-(-numel // 2), dtype=torch.uint8, device=self.device)
        scales = torch.empty(-(-numel // _GROUP), dtype=torch.float32, device=self.device)
        states: list[Any] = []

        def do(block: torch.Tensor, start: int) -> None:
            here = block.to(self.device, dtype).contiguous()
            made, state = functional.quantize_4bit(here, blocksize=_GROUP, quant_type=wanted.kind)
            first, group = start * width // 2, start * width // _GROUP
            packed[first : first + made.numel()] = made.view(-1)
            scales[group : group + state.absmax.numel()] = state.absmax
            if not start:
                states.append(state)

        self._each_block(stored, do)
        (state,) = states
        state.absmax, state.shape = scales, stored.shape
        if wanted.nested:
            state.offset, state.nested = scales.mean(), True
            state.absmax, state.state2 = functional.quantize_blockwise(
                scales - state.offset, blocksize=_OUTER
            )
        return self.package.nn.Params4bit(  # type: ignore[no-any-return]
            packed.view(wanted.storage)[:, None],
            requires_grad=False,
            quant_state=state,
            blocksize=_GROUP,
            compress_statistics=wanted.nested,
            quant_type=wanted.kind,
            quant_storage=wanted.storage,
            bnb_quantized=True,
        )
