"""Alters the kernels' source, one line at a time, and demands that a short run in the emulator notices.

A test that passes on right kernels proves little; each mutant here is a bug that was made, or could be. `expected` is a part of
what the run must print: the rule that was broken, or `wrong value` where only the numbers can tell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CXX = os.environ.get("CXX", "g++")
pytestmark = pytest.mark.skipif(not shutil.which(CXX), reason="no C++ compiler")

STILL_READ = "__syncthreads();  // nobody refills a stage that is still read"
TILE_STILL_READ = "__syncthreads();  // nobody refills a tile that is still read"
LDMATRIX = "ldmatrix_x4<false>(raw, row[m] + offset);"
TABLE_AT = "const uint32_t table = up_to_16(int64_t(stages) * stage)"
WRONG = "are outside|wrong value"

#: driver: name: (file, what stands there, what is put in its place, what the run must print)
CONV = {
    "as it stands": ("grouped_conv2d.cuh", "", "", " 0 failures"),
    "no barrier before the product": ("grouped_conv2d.cuh", "__syncthreads();\n    if (item.round == 0)", "if (item.round == 0)", "race"),
    "no barrier before the refill": ("grouped_conv2d.cuh", STILL_READ, "", "race|is being copied to"),
    "waits for one copy too few": ("grouped_conv2d.cuh", "copy_async_wait<1>()", "copy_async_wait<2>()", "is being copied to"),
    "copies left at the end": (
        "grouped_conv2d.cuh",
        "  copy_async_wait<0>();\n}\n",
        "  fetched = {0, 0};\n  fetch();\n}\n",
        "not waited for",
    ),
    "barrier for some warps": ("grouped_conv2d.cuh", STILL_READ, "if (warp < 3) __syncthreads();", "divergent|deadlock|race"),
    "matrix step for some lanes": ("grouped_conv2d.cuh", LDMATRIX, f"if (lane < 31) {LDMATRIX}", "divergent|deadlock"),
    "halo: right edge": ("conv_job.h", "p.x < job.source_w", "p.x <= job.source_w", WRONG),
    "halo: left edge": ("conv_job.h", "p.x >= 0", "p.x >= -1", WRONG),
    "halo: last image": ("conv_job.h", "p.inside = p.n < job.N && p.y >= 0", "p.inside = p.n <= job.N && p.y >= 0", "are outside"),
    "halo: a column too few": (
        "conv_plan.h",
        "job.x.source_step() + span_x + 1",
        "job.x.source_step() + span_x",
        f"{WRONG}|is being copied to|race",
    ),
    "writes a column too many": ("conv_job.h", "p.x < job.target_w", "p.x <= job.target_w", f"{WRONG}|twice"),
    "writes a channel too many": ("grouped_conv2d.cuh", "if (channel + q < channels) store(", "store(", f"{WRONG}|twice"),
    "reads a channel too many": ("conv_stage.cuh", "p.inside && channel < channels ?", "p.inside ?", WRONG),
    "weight of the next group": ("grouped_conv2d.cuh", "source >= job.source_group", "source > job.source_group", WRONG),
    "odd half step not zero": ("grouped_conv2d.cuh", "if (entry >= entries ||", "if (entry > entries ||", WRONG),
    "taps forwards in grad_x": ("conv_job.h", "-(dilation / a)}", "dilation / a}", "wrong value"),
    "too little shared memory": ("conv_plan.h", TABLE_AT, f"{TABLE_AT} - 64", f"{WRONG}|race|is being copied to"),
    "pixels without their gap": ("conv_plan.h", "(pieces | 1) * 16", "(pieces | 1) * 16 - 8", "multiple of 16"),
}
WEIGHT = {
    "as it stands": ("grouped_conv2d_weight.cuh", "", "", " 0 failures"),
    "no barrier before the product": (
        "grouped_conv2d_weight.cuh",
        "    __syncthreads();\n    for (int pixel = 0",
        "    for (int pixel = 0",
        "race",
    ),
    "no barrier before the refill": ("grouped_conv2d_weight.cuh", TILE_STILL_READ, "", "race|is being copied to"),
    "does not wait": ("grouped_conv2d_weight.cuh", "copy_async_wait<0>()", "copy_async_wait<1>()", "is being copied to"),
    "odd half counts": ("grouped_conv2d_weight.cuh", "!e.counts) continue;", "false) continue;", "twice|wrong value"),
    "parts overlap": ("grouped_conv2d_weight.cuh", "parts + blockIdx.x * job.weights", "parts", "twice"),
    "a part is left out": ("grouped_conv2d_weight.cuh", "p < count; ++p", "p + 1 < count; ++p", "wrong value"),
    "a column of grad_out too many": ("conv_job.h", "p.x < job.target_w", "p.x <= job.target_w", WRONG),
}
LINEAR = {
    "as it stands": ("sparse_linear.cuh", "", "", " 0 failures"),
    "a row too many": ("sparse_linear.cuh", "row + q < N ?", "row + q <= N ?", WRONG),
    "a target too many": (
        "sparse_linear.cuh",
        "if (t >= job.targets || first_row",
        "if (t > job.targets || first_row",
        f"{WRONG}|twice|race",
    ),
    "results read before they are all there": (
        "sparse_linear.cuh",
        "    __syncwarp();\n    for (int i = lane",
        "    for (int i = lane",
        "race",
    ),
    "rows staged over rows still read": (
        "sparse_linear.cuh",
        "__syncthreads();  // nobody stages over rows that are still read",
        "",
        "race",
    ),
    "no barrier after staging": (
        "sparse_linear.cuh",
        "granule * 4, first_output + o));\n    }\n    __syncthreads();",
        "granule * 4, first_output + o));\n    }",
        "race",
    ),
    "granule of the neighbour": ("sparse_linear.cuh", "granule ^ (source % kGranules)", "granule / 2", "wrong value|race"),
    "shuffles of half the lanes": ("sparse_linear.cuh", "with = 16; with", "with = 8; with", "wrong value"),
    "blocks: waits for one copy too few": (
        "sparse_linear_blocks.cuh",
        "copy_async_wait<1>()",
        "copy_async_wait<2>()",
        "is being copied to",
    ),
    "blocks: no barrier": (
        "sparse_linear_blocks.cuh",
        "__syncthreads();   // everybody's copies are there",
        "// everybody's copies are there",
        "race|is being copied to",
    ),
    "blocks: one stage too few": (
        "sparse_linear_blocks.cuh",
        "kBlockStages = 3",
        "kBlockStages = 2",
        "race|is being copied to|multiple|outside",
    ),
    "blocks: a piece too many": ("sparse_linear_blocks.cuh", "inside = piece < pieces", "inside = piece <= pieces", "are outside"),
    "blocks: a row too many": (
        "sparse_linear_blocks.cuh",
        "inside && first_row + row < job.N",
        "inside && first_row + row <= job.N",
        "are outside",
    ),
    "blocks: writes a row too many": ("sparse_linear_blocks.cuh", "if (row >= job.N ||", "if (row > job.N ||", "are outside"),
    "blocks: zeros not filled up": (
        "piece.cuh",
        "copy_async_16(to, from, count > 0 ? 16 : 0)",
        "copy_async_16(to, from, 16)",
        "wrong value|are outside",
    ),
}
LIST, MATRIX = "sparse_conv2d_list.cuh", "sparse_conv2d_matrix.cuh"
MASKED = {
    "as it stands": (LIST, "", "", " 0 failures"),
    "no barrier after staging": (
        LIST,
        "staged);\n    __syncthreads();\n    const int per_entry",
        "staged);\n    const int per_entry",
        "race",
    ),
    "list: refill too early": (LIST, "__syncthreads();  // nobody refills what is still read; sums are there", "", "race"),
    "list: weights fetched over": (LIST, "__syncwarp();  // nobody fetches over weights that are still read", "", "race"),
    "list: weights not waited for": (LIST, "        __syncwarp();\n        SK_UNROLL_2", "        SK_UNROLL_2", "race"),
    "list: sums begin anew": (LIST, "number && v < width ?", "number > 99 && v < width ?", "wrong value"),
    "list: a filter of the next block": (LIST, "reaches && v < width ?", "reaches ?", "outside|wrong value"),
    "list: a target too many": (LIST, "!p.inside || t >= targets", "!p.inside || t > targets", "outside|twice"),
    "list: a pixel too many": (
        LIST,
        "store_shared((channel * pitch + pixel) * 4, p.inside ?",
        "store_shared((channel * pitch + pixel) * 4, true ?",
        WRONG,
    ),
    "weight: staged too early": (LIST, "__syncthreads();  // nobody stages over pixels that are still read", "", "race"),
    "weight: the filter of the last weight": (LIST, "if (it.v[2] != of) {", "if (of < 0) {", "wrong value"),
    "weight: a channel of the next round": (
        LIST,
        "it.v[0] >= staged.end) continue;",
        "false) continue;",
        "outside|wrong value|race|read at",
    ),
    "weight: half the lanes": (LIST, "with = 16; with", "with = 8; with", "wrong value"),
    "another phase's tap": (
        "sparse_conv2d_job.h",
        "return v % axis.stride ? Reach{false, 0}",
        "return v % axis.stride > 9 ? Reach{false, 0}",
        "wrong value",
    ),
    "a round's last block left out": (
        "sparse_conv2d_job.h",
        "first_entry(job, first, end, r.blocks.end)}",
        "first_entry(job, first, end, r.blocks.end - 1)}",
        "wrong value",
    ),
    "matrix: places not waited for": (
        MATRIX,
        "          __syncthreads();\n          k.prepare_weights",
        "          k.prepare_weights",
        "race",
    ),
    "matrix: weights not waited for": (
        MATRIX,
        "        __syncthreads();\n        k.multiply",
        "        k.multiply",
        "race|is being copied to",
    ),
    "matrix: refill too early": (MATRIX, "__syncthreads();  // nobody refills what is still read", "", "race|is being copied to"),
    "matrix: the halves of a step exchanged": (MATRIX, "row[m][r % 2] + at[r / 2][q]", "row[m][r / 2] + at[r % 2][q]", "wrong value"),
    "matrix: an item too many": (MATRIX, "if (m < count) {", "if (m <= count) {", "outside|wrong value"),
    "matrix: a target too many": (MATRIX, "place >= 0 && t < job.kept.target_block", "place >= 0", "outside|wrong value"),
    "matrix: prepared for another batch": (MATRIX, "kept.rounds == 1 && items <= capacity", "true", "wrong value"),
}
SCATTER = "sparse_conv2d_scatter.cuh"
MASKED |= {
    "scatter: refill too early": (SCATTER, "__syncthreads();  // nobody refills what is still read", "", "race|is being copied to"),
    "scatter: who keeps it not waited for": (SCATTER, "count);\n        __syncthreads();", "count);", "race|read at|wrong value|outside"),
    "scatter: weights not waited for": (
        SCATTER,
        "steps);\n          __syncthreads();\n          uint32_t from",
        "steps);\n          uint32_t from",
        "race",
    ),
    "scatter: a channel too many": (SCATTER, "slot < count && k < round.channels.size()", "slot < count", "outside|wrong value"),
    "scatter: a target too many": (SCATTER, "if (slot >= count) continue;", "if (slot > count) continue;", "outside|wrong value|read at"),
    "scatter: the neighbour's weights": (SCATTER, "slot += l < lane ?", "slot += l <= lane ?", "wrong value|outside|read at"),
    "scatter: a batch too large": (SCATTER, "units + more > job.capacity", "units + more > job.capacity + 8", "outside|past its end"),
    "scatter: prepared for another batch": (
        SCATTER,
        "kept.rounds == 1 && cells == count && begin == 0 && end == count",
        "true",
        "wrong value|race",
    ),
    "scatter: the entry behind": (SCATTER, "e.tap_block == tap_block ? e.place", "e.tap_block >= tap_block ? e.place", "wrong value"),
}
PATCH_KERNEL = "sparse_conv2d_weight.cuh"
PATCH = {
    "as it stands": (PATCH_KERNEL, "", "", " 0 failures"),
    "pixels not waited for": (PATCH_KERNEL, "__syncthreads();  // where pixels stand is known", "", "race|outside|wrong value"),
    "no barrier before the product": (PATCH_KERNEL, "__syncthreads();  // everybody's copies are there", "", "race|is being copied to"),
    "does not wait": (PATCH_KERNEL, "copy_async_wait<0>()", "copy_async_wait<1>()", "is being copied to"),
    "refill too early": (PATCH_KERNEL, "__syncthreads();  // nobody refills what is still read", "", "race|is being copied to"),
    "a pixel too many": (PATCH_KERNEL, "channel >= 0 && pixel >= 0 ?", "channel >= 0 ?", "outside"),
    "a column too many": (
        PATCH_KERNEL,
        "if (column < columns) store(part",
        "if (column <= columns) store(part",
        "twice|outside|wrong value",
    ),
    "an item too many": (PATCH_KERNEL, "if (r < lines) place =", "if (r <= lines) place =", "twice|outside|wrong value"),
    "the next source block": (PATCH_KERNEL, "i >= 0 && i < kept.source_block) place", "i >= 0) place", "twice|outside|wrong value"),
    "halves of a step exchanged": (PATCH_KERNEL, "half * E + lane % 4", "(1 - half) * E + lane % 4", "wrong value"),
    "a quarter of the pixels twice": (PATCH_KERNEL, "+ lane / 8 * 16);", "+ lane / 16 * 16);", "wrong value"),
    "parts overlap": (PATCH_KERNEL, "parts + blockIdx.y * job.weights", "parts", "twice"),
    "lists share a slot": (PATCH_KERNEL, "return begin(l) / job.units + l;", "return begin(l) / job.units;", "wrong value|twice|outside"),
    "another group's block": (PATCH_KERNEL, "first_block(middle) <= block", "first_block(middle) < block", "wrong value|twice|outside"),
    "every patch the first": (PATCH_KERNEL, "(mine - slot(low)) * job.units", "int64_t(0)", "twice"),
    "another tap's filters": (PATCH_KERNEL, "first * kept.taps + tap * kept_by", "first * kept.taps + tap", "wrong value|twice|outside"),
    "a channel of the next round": (PATCH_KERNEL, "&& item.channel < round.end * E;", ";", "wrong value|outside|race|read at"),
}
PANELS = "sparse_linear_panels.cuh"
PANEL = {
    "as it stands": (PANELS, "", "", " 0 failures"),
    "a row too many": (PANELS, "if (row >= pass.height ||", "if (row > pass.height ||", "outside"),
    "a picked line of the next stage": (
        "grouped_mm.cuh",
        "APicked && ATurned ? done : 0",
        "APicked && ATurned ? done + 1 : 0",
        "wrong value|outside",
    ),
    "picks not counted": ("grouped_mm.cuh", "number = load(picks + at)", "number = at", "wrong value|outside"),
    "the list of another panel": (PANELS, "job.index + int64_t(ob) * job.fan_in};", "job.index};", "wrong value"),
    "weight: an output too many": (
        PANELS,
        "at_most(job.fan_in - row, kMmTile)",
        "at_most(job.fan_in - row + 1, kMmTile)",
        "outside|wrong value|twice",
    ),
    "weight: another panel's gradient": (
        PANELS,
        "(int64_t(ob) * job.width + column) * job.mm.b_line",
        "column * job.mm.b_line",
        "wrong value",
    ),
}
PANELS_INPUT = "sparse_linear_panels_input.cuh"
PANEL |= {
    "input: ranges not waited for": (PANELS_INPUT, "__syncthreads();  // the ranges are there, and the sums are zero", "", "race"),
    "input: written before all is summed": (PANELS_INPUT, "__syncthreads();  // all sums are there", "", "race"),
    "input: a line too many": (PANELS_INPUT, "at < pass.height ? load(", "at <= pass.height ? load(", "wrong value|outside|race"),
    "input: the input before": (
        PANELS_INPUT,
        "load(list + first + half) < input",
        "load(list + first + half) <= input",
        "wrong value|outside",
    ),
    "input: one tile of lines": (PANELS_INPUT, "first < range.v[1]; first +=", "first < range.v[0] + 1; first +=", "wrong value"),
    "input: a row too many": (PANELS_INPUT, "rows = at_most(job.N - first_row, kMmTile);", "rows = kMmTile;", "outside"),
}
ROOT_KERNEL = "root_conv2d.cuh"
ROOTS = {
    "as it stands": (ROOT_KERNEL, "", "", " 0 failures"),
    "source refilled too early": (
        ROOT_KERNEL,
        "__syncthreads();  // nobody refills what is still read; the channels between are there",
        "",
        "race",
    ),
    "weights staged too early": (
        ROOT_KERNEL,
        "__syncthreads();  // nobody stages over weights that are still read",
        "",
        "race|is being copied to",
    ),
    "weights not waited for": (ROOT_KERNEL, "__syncthreads();\n        SK_UNROLL", "SK_UNROLL", "race|is being copied to"),
    "no activation between": (ROOT_KERNEL, "c.relu && v < 0 ?", "false ?", "wanted"),
    "the last piece not filled up": (ROOT_KERNEL, "channel >= (job.channels + E - 1) / E * E", "channel >= job.channels", "wanted|nan"),
    "a channel too many between": (ROOT_KERNEL, "const bool there = channel + q < job.channels;", "const bool there = true;", "outside"),
    "an output too many": (ROOT_KERNEL, "if (channel + q < job.outs) store(", "store(", "outside|twice"),
    "a line too many of the second weight": (ROOT_KERNEL, "first + line < job.outs && left > 0", "left > 0", "outside"),
}
MM = "grouped_mm.cuh"
MANY = {
    "as it stands": (MM, "", "", " 0 failures"),
    "no barrier before the product": (MM, "__syncthreads();   // everybody's copies are there", "//", "race|is being copied to"),
    "fetched over what is read": (MM, "__syncthreads();  // the next pass fetches over what was read", "", "race|is being copied to"),
    "waits for one copy too few": (MM, "copy_async_wait<1>()", "copy_async_wait<2>()", "is being copied to"),
    "one stage too few": (MM, "kMmStages = 3", "kMmStages = 2", "race|is being copied to"),
    "writes a row of the group before": (
        MM,
        "if (row >= pass.skip && row < pass.height && column < pass.width) store(out + row * line",
        "if (row < pass.height && column < pass.width) store(out + row * line",
        "twice",
    ),
    "writes a row too many": (
        MM,
        "if (row >= pass.skip && row < pass.height && column < pass.width) store(out + row * line",
        "if (row >= pass.skip && row <= pass.height && column < pass.width) store(out + row * line",
        "twice|outside",
    ),
    "a line too many of the sum": (MM, "turned ? at < inner_left :", "turned ? at <= inner_left :", "outside|wrong value"),
    "halves of a turned step exchanged": (
        MM,
        "lane / 8 % 2 * 8 + lane % 8) * kTurned",
        "lane / 16 * 8 + lane % 8) * kTurned",
        "wrong value",
    ),
    "the group behind": (MM, "if (load(job.offsets + middle) > row)", "if (load(job.offsets + middle) > row + 20)", "wrong value"),
    "direct: a number behind the sum": (MM, "there && inner < pass.inner ?", "there ?", "outside|wrong value"),
    "direct: a group left out": (MM, "if (r.first >= first + 16 ||", "if (r.first >= first ||", "wrong value|read"),
}
FENCED_BEFORE = "fence_async_proxy();\n        __syncthreads();  // everybody's copies are there"
FENCED_AFTER = "__syncthreads();\n        fence_async_proxy();  // everybody's copies are there"
TILE, WIDE, BLOCKS = "wgmma_tile.cuh", "sparse_linear_panels_wgmma.cuh", "sparse_linear_blocks_wgmma.cuh"
WGMMA = {
    "as it stands": (TILE, "", "", " 0 failures"),
    "a stage not waited for": (TILE, "copy_async_wait<1>()", "copy_async_wait<2>()", "is being copied to"),
    "no fence between copies and products": (TILE, "        fence_async_proxy();\n", "", "did not fence the asynchronous proxy"),
    "fenced after the barrier": (TILE, FENCED_BEFORE, FENCED_AFTER, "did not fence the asynchronous proxy"),
    "no fence of the sums": (TILE, "        wgmma_fence();\n", "", "no wgmma.fence"),
    "no barrier before the products": (
        TILE,
        "__syncthreads();  // everybody's copies are there",
        "// everybody's copies are there",
        "race",
    ),
    "products not waited for before the refill": (TILE, "wgmma_wait<1>()", "wgmma_wait<2>()", "is still read by a wgmma|race"),
    "refilled a stage too early": (
        TILE,
        "fetch(stage + 2);  // takes",
        "fetch(stage + 3);  // takes",
        "is still read by|race|is being|wrong value",
    ),
    "a stage too few": (TILE, "kWgmmaStages = 4", "kWgmmaStages = 3", "is still read by a wgmma|race"),
    "products for some warps": (
        TILE,
        "        wgmma_commit();\n",
        "        if (threadIdx.x % 64 < 32) wgmma_commit();\n",
        "divergent|deadlock",
    ),
    "sums read before they are there": (TILE, "      wgmma_wait<0>();\n", "", "wrong value|is not waited for|is still read by"),
    "tile over stages that are still read": (
        TILE,
        "__syncthreads();  // the tile takes the place of the stages",
        "",
        "race|is still read by",
    ),
    "tile read before it is there": (TILE, "__syncthreads();  // the tile is there", "", "race"),
    "another swizzle": (TILE, "((piece ^ line) & 7) * 16", "((piece ^ (line + 1)) & 7) * 16", "wrong value"),
    "no swizzle": (TILE, "((piece ^ line) & 7) * 16", "(piece & 7) * 16", "wrong value"),
    "steps of another height": (TILE, "kWgmmaAtom, 1024);", "kWgmmaAtom, 2048);", "wrong value|race|being|fence"),
    "neighbours of another atom": (TILE, "kWgmmaAtom, 1024);", "1024, 1024);", "wrong value"),
    "steps along the lines not turned": (TILE, "(Turned ? 16 * 128 : 16 * 2)", "(16 * 128)", "wrong value|race|being|fence|end"),
    "turned operands as if they were not": (TILE, "LeftTurned, RightTurned>(sum,", "LeftTurned, true>(sum,", "wrong value|race|fence|end"),
    "the other warpgroup's outputs": (TILE, "threadIdx.x / 128 % (Left / 64) * 64", "0", "wrong value|race|twice"),
    "the other warpgroup's rows": (
        TILE,
        "R::descriptor(at + kRightAt, group_right(), step)",
        "R::descriptor(at + kRightAt, 0, step)",
        "wrong value",
    ),
    "a piece of rows too many": (WIDE, "left > 0 ? int(left) * 2 : 0", "16", "outside"),
    "a row too many": (
        WIDE,
        "by_row, Outputs, job.N - first_row < Rows ? int(job.N - first_row) : Rows",
        "by_row, Outputs, job.N - first_row < Rows ? int(job.N - first_row) + 1 : Rows",
        "outside|twice",
    ),
    "a connection too many": (
        WIDE,
        "stage * kWgmmaDepth + R::line() + p * R::kStep;\n      picked[p] = connection < job.fan_in",
        "stage * kWgmmaDepth + R::line() + p * R::kStep;\n      picked[p] = connection <= job.fan_in",
        "outside|wrong value",
    ),
    "a line of the weight too many": (WIDE, "p * L::kStep < job.fan_in ? 16", "p * L::kStep <= job.fan_in ? 16", "outside"),
    "lines of the stage before": (WIDE, "pick(stage + 1)", "pick(stage)", "wrong value"),
    "weight: a row of grad_out too many": (WIDE, "p * L::kStep < job.N ? 16", "p * L::kStep <= job.N ? 16", "outside|wrong value"),
    "weight: rows behind the last": (WIDE, "bytes_of_piece(job.N - first - R", "bytes_of_piece(job.x_line - first - R", "wrong value"),
    "weight: a connection of the next panel": (
        WIDE,
        "first_line + R::line() + p * R::kStep;\n    picked[p] = connection < job.fan_in",
        "first_line + R::line() + p * R::kStep;\n    picked[p] = connection <= job.fan_in",
        "outside",
    ),
    "weight: a line too many": (
        WIDE,
        "job.fan_in - first_line < Lines ? job.fan_in - first_line :",
        "job.fan_in - first_line < Lines ? job.fan_in - first_line + 1 :",
        "outside|twice",
    ),
    "weight: the first tile's lines": (WIDE, "job.fan_in + first_line) * job.width", "job.fan_in) * job.width", "twice|wrong value"),
}
WIDE_BLOCKS = {
    "as it stands": (BLOCKS, "", "", " 0 failures"),
    "a stage not waited for": (TILE, "copy_async_wait<1>()", "copy_async_wait<2>()", "is being copied to"),
    "no barrier before the products": (
        TILE,
        "__syncthreads();  // everybody's copies are there",
        "// everybody's copies are there",
        "race",
    ),
    "a row too many": (
        BLOCKS,
        "first_row + R::line() + p * R::kStep < job.N ?",
        "first_row + R::line() + p * R::kStep <= job.N ?",
        "outside",
    ),
    "writes a row too many": (
        BLOCKS,
        "by_row, Targets, job.N - first_row < Rows ? int(job.N - first_row) : Rows",
        "by_row, Targets, job.N - first_row < Rows ? int(job.N - first_row) + 1 : Rows",
        "outside|twice",
    ),
    "a block too many": (
        BLOCKS,
        "const int64_t end = job.indptr ? load(job.indptr + target_block + 1)",
        "const int64_t end = job.indptr ? load(job.indptr + target_block + 1) + 1",
        "outside|wrong value",
    ),
    "the block before": (BLOCKS, "pick(stage + 1)", "pick(stage)", "wrong value"),
    "the weight's lines not turned": (
        BLOCKS,
        "WeightTurned ? job.target_block : job.source_block,",
        "job.source_block,",
        "wrong value|outside",
    ),
    "blocks in the order of inputs": (BLOCKS, "job.place ? load(job.place + entry) : entry", "entry", "wrong value"),
    "the first columns of a block": (BLOCKS, "stage % per_block * kWgmmaDepth;", "0;", "wrong value"),
    "weight: rows of x too many": (
        BLOCKS,
        "p * R::kStep < job.N ? 16 : 0};\n    });\n  });\n\n  T* const to = grad_weight",
        "p * R::kStep <= job.N ? 16 : 0};\n    });\n  });\n\n  T* const to = grad_weight",
        "outside",
    ),
    "weight: rows of grad_out too many": (BLOCKS, "p * L::kStep < job.N ? 16", "p * L::kStep <= job.N ? 16", "outside"),
    "weight: a block of the next row": (BLOCKS, "R::piece() / 8 < atoms", "R::piece() / 8 <= atoms", "outside|wrong value"),
    "weight: an atom too many": (BLOCKS, "Outputs, atoms * 64,", "Outputs, Inputs,", "outside|twice"),
    "weight: inputs of another block": (
        BLOCKS,
        "ob * job.fan_in + atom / per_block)",
        "ob * job.fan_in + R::piece() / 8)",
        "wrong value|outside",
    ),
    "weight: blocks one behind the other": (BLOCKS, "const int at = first_atom + i / 64;", "const int at = first_atom;", "twice"),
}
#: In every kind of kernel: what some of a block's threads pass by, and copies that are not waited for.
SOME = "if (threadIdx.x < 96) __syncthreads();"
APART = "divergent|deadlock|race"
NOT_REFILLED = "__syncthreads();  // nobody refills what is still read"
HALO = ("conv_job.h", "p.x < job.source_w", "p.x <= job.source_w", WRONG)
WEIGHT["barrier for some warps"] = ("grouped_conv2d_weight.cuh", TILE_STILL_READ, SOME, APART)
LINEAR |= {
    "barrier for some warps": ("sparse_linear.cuh", "__syncthreads();  // nobody stages over rows that are still read", SOME, APART),
    "blocks: barrier for some warps": (
        "sparse_linear_blocks.cuh",
        "__syncthreads();   // everybody's copies are there",
        f"{SOME} //",
        APART,
    ),
    "blocks: matrix step for some lanes": (
        "sparse_linear_blocks.cuh",
        "ldmatrix_x4<false>(raw, targets",
        "if (lane < 31) ldmatrix_x4<false>(raw, targets",
        APART,
    ),
}
MASKED |= {
    "list: barrier for some warps": (LIST, "__syncthreads();  // nobody refills what is still read; sums are there", SOME, APART),
    "list: halo: right edge": HALO,
    "matrix: barrier for some warps": (MATRIX, NOT_REFILLED, SOME, APART),
    "matrix: does not wait": (MATRIX, "copy_async_wait<0>()", "copy_async_wait<1>()", "is being copied to"),
    "scatter: barrier for some warps": (SCATTER, NOT_REFILLED, SOME, APART),
    "scatter: does not wait": (SCATTER, "copy_async_wait<0>()", "copy_async_wait<1>()", "is being copied to"),
}
PATCH["barrier for some warps"] = (PATCH_KERNEL, NOT_REFILLED, SOME, APART)
PANEL["input: barrier for some warps"] = (PANELS_INPUT, "__syncthreads();  // all sums are there", SOME, APART)
ROOTS |= {
    "barrier for some warps": (ROOT_KERNEL, "__syncthreads();  // nobody stages over weights that are still read", SOME, APART),
    "does not wait for the source": (
        ROOT_KERNEL,
        "copy_async_wait<0>();\n      k.prepare",
        "copy_async_wait<1>();\n      k.prepare",
        "is being copied to",
    ),
    "does not wait for the second weight": (
        ROOT_KERNEL,
        "copy_async_wait<0>();\n        __syncthreads();",
        "copy_async_wait<1>();\n        __syncthreads();",
        "is being copied to",
    ),
    "halo: right edge": HALO,
}
MANY["barrier for some warps"] = (MM, "__syncthreads();  // the next pass fetches over what was read", SOME, APART)
DRIVERS = {
    "wgmma": WGMMA,
    "wide": WIDE_BLOCKS,
    "conv": CONV,
    "weight": WEIGHT,
    "linear": LINEAR,
    "masked": MASKED,
    "patch": PATCH,
    "mm": MANY,
    "panels": PANEL,
    "root": ROOTS,
}
MUTANTS = {f"{driver}: {name}": (driver, *m) for driver, all in DRIVERS.items() for name, m in all.items()}

#: Always run: of the first kernels one or two kinds of mistake each, of the later ones a single mutant; the rest with --full.
FEW = {
    "weight: no barrier before the product",
    "masked: matrix: refill too early",
    "patch: a pixel too many",
    "mm: fetched over what is read",
}
KINDS = ["as it stands", "no barrier", "one copy too few", "a row too many", "halo: right edge", "shuffles of half"]
ALWAYS = [name for name in MUTANTS if (MUTANTS[name][0] in ("conv", "linear") and any(k in name for k in KINDS)) or name in FEW]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in MUTANTS])
def test_mutant_is_caught(name, tmp_path):
    driver, file, old, new, expected = MUTANTS[name]
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "cuda")
    source = (tmp_path / "cuda" / file).read_text()
    assert not old or source.count(old) == 1, f"{file} has {source.count(old)} of {old!r}; the mutant must follow the source"
    (tmp_path / "cuda" / file).write_text(source.replace(old, new) if old else source)
    include = [f"-I{tmp_path}", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]
    main = ROOT / "tests" / "cuda" / f"mutant_{driver}.cpp"
    subprocess.run(
        [CXX, "-std=c++17", "-O1", "-w", "-DSK_EMU", *include, "-o", str(tmp_path / "mutant"), str(main)], check=True, timeout=300
    )
    run = subprocess.run([tmp_path / "mutant"], capture_output=True, text=True, timeout=300)
    assert run.returncode == (1 if old else 0), run.stdout + run.stderr
    assert any(e in run.stdout for e in expected.split("|")), run.stdout
