"""Loads are ascribed to the pointers that their addresses are made of."""

from __future__ import annotations

import pytest

from microturn.kernels.loads import Load, read_loads

NAMES = ("x_ptr", "n", "w_ptr", "table_ptr")
HEAD = """
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u32 kernel_param_1,
	.param .u64 .ptr .global .align 1 kernel_param_2,
	.param .u64 .ptr .global .align 1 kernel_param_3,
	.param .u64 .ptr .global .align 1 kernel_param_4
)
{
	.reg .b64 	%rd<99>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b32 	%r1, [kernel_param_1];
	ld.param.b64 	%rd2, [kernel_param_2];
	ld.param.b64 	%rd3, [kernel_param_3];   // not %rd1
	ld.param.b64 	%rd4, [kernel_param_4];
	mov.u32 	%r2, %tid.x;
	mad.wide.s32 	%rd10, %r2, 16, %rd1;
	mul.wide.s32 	%rd11, %r1, %r2;
	add.s64 	%rd12, %rd2, %rd11;
"""


def load(nbytes: int, *pointers: str) -> Load:
    return Load(frozenset(pointers), nbytes)


@pytest.mark.parametrize(
    ("code", "loads"),
    [
        ("ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd10 + 0 ];", [load(16, "x_ptr")]),
        ("@%p1 ld.global.L1::evict_first.v2.b64 {%rd20, %rd21}, [%rd12];", [load(16, "w_ptr")]),
        ("@!%p1 ld.global.b16 {%rs1}, [%rd12 + 2];", [load(2, "w_ptr")]),
        ("cp.async.ca.shared.global [ %r9 + 0 ], [ %rd12 + 0 ], 0x8, %r8;", [load(8, "w_ptr")]),
        ("cp.async.cg.shared.global [ %r9 + 0 ], [ %rd10 + 0 ], 0x10;", [load(16, "x_ptr")]),
        (
            "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [ %r9 + 0 ], %rd2;",
            [load(16, "w_ptr")],
        ),
        ("ld.shared.b32 %r7, [%r9];\nprefetch.global.L2 [%rd12];", []),
        ("setp.lt.s32 %p1, %r2, %r1;\nst.global.b32 [%rd12], {%r2};", []),
        # whichever of two
        (
            "selp.b64 %rd13, %rd10, %rd12, %p1;\n\tadd.s64 %rd14, %rd13, 8;\n"
            "ld.global.b64 %rd15, [%rd14];",
            [load(8, "x_ptr", "w_ptr")],
        ),
        # around a loop
        (
            "mov.b64 %rd30, %rd12;\n$L1:\nld.global.b32 %r7, [%rd31];\nadd.s64 %rd31, %rd30, 4;\n"
            "mov.b64 %rd30, %rd31;\nbra $L1;",
            [load(4, "w_ptr")],
        ),
        # an offset read from memory, and an address read from memory
        (
            "ld.global.b32 %r7, [%rd3];\nmad.wide.s32 %rd16, %r7, 4, %rd1;\n"
            "ld.global.v4.b32 {%r3, %r4, %r5, %r6}, [%rd16];",
            [load(4, "table_ptr"), load(16, "x_ptr")],
        ),
        (
            "ld.global.b64 %rd17, [%rd3+8];\nadd.s64 %rd18, %rd17, %rd11;\n"
            "ld.global.v2.b32 {%r3, %r4}, [%rd18];",
            [load(8, "table_ptr"), load(8, "*table_ptr")],
        ),
        # in a function, called with one pointer and with another
        (
            "{ // callseq 0, 0\n.param .b32 param0;\n.param .b64 param1;\n"
            "st.param.b64 [param1], %rd12;\nst.param.b32 [param0], %r1;\n"
            "call.uni inner_$1, (param0, param1);\n} // callseq 0\n"
            "st.param.b64 [param1], %rd10;\nst.param.b32 [param0], %r1;\n"
            "call.uni inner_$1, (param0, param1);\nret;\n}\n"
            ".func inner_$1(\n.param .b32 inner_$1_param_0,\n.param .b64 inner_$1_param_1\n)\n{\n"
            "ld.param.b64 %rd1, [inner_$1_param_1];\nadd.s64 %rd12, %rd1, 4;\n"
            "ld.global.b32 %r3, [%rd12];",
            [load(4, "w_ptr", "x_ptr")],
        ),
        # two results of one instruction
        ("mov.b64 {%r3, %r4}, %rd12;\nmov.b64 %rd19, {%r3, %r4};\nld.global.b8 %rs1, [%rd19];",
         [load(1, "w_ptr")]),
    ],
)  # fmt: skip
def test_a_load_belongs_to_its_pointers(code: str, loads: list[Load]) -> None:
    assert read_loads(HEAD + code + "\nret;\n}\n", NAMES) == tuple(loads)
