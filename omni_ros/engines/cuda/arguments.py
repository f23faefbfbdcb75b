"""Arguments of the kernels, field by field as kernels/*/*.cu declare them."""

import ctypes
import math

Pointer, Int, Float = ctypes.c_void_p, ctypes.c_int, ctypes.c_float


class Matrix(ctypes.Structure):
    _fields_ = [("data", Pointer), ("scale", Pointer), ("scale_2", Pointer)]


class Stacked(ctypes.Structure):
    _fields_ = [("matrix", Matrix * 3), ("rows", Int * 3)]

    @classmethod
    def of(cls, *matrices: tuple[Matrix, int]) -> "Stacked":
        """Of up to three matrices with their rows."""
        return cls((Matrix * 3)(*(m for m, _ in matrices)), (Int * 3)(*(rows for _, rows in matrices)))


class SwiGLU(ctypes.Structure):
    _fields_ = [("gate", Matrix), ("up", Matrix), ("down", Matrix), ("inner", Int)]


class Rope(ctypes.Structure):
    _fields_ = [("q_norm", Pointer), ("k_norm", Pointer), ("eps", Float), ("cos_sin", Pointer)]


class GemvArgs(ctypes.Structure):
    _fields_ = [
        ("x", Pointer),
        ("gamma", Pointer),
        ("eps", Float),
        ("K", Int),
        ("out", Pointer),
        ("add", Int),
        ("normed", Pointer),
    ]


class FeedForwardArgs(ctypes.Structure):
    _fields_ = [
        ("expert", SwiGLU),
        ("shared", SwiGLU),
        ("experts", Int),
        ("top_k", Int),
        ("normalize", Int),
        ("logits", Pointer),
        ("ids", Pointer),
        ("weights", Pointer),
        ("gated", Int),
        ("hidden", Int),
    ]


class GemmArgs(ctypes.Structure):
    _fields_ = [("x", Pointer), ("K", Int), ("bias", Pointer), ("out", Pointer), ("add", Int), ("rows", Pointer)]


class GroupArgs(ctypes.Structure):
    _fields_ = [("tiles", Pointer), ("experts", Int), ("top_k", Int), ("rows", Pointer)]


class Pending(ctypes.Structure):
    _fields_ = [
        ("routed", Pointer),
        ("weights", Pointer),
        ("position", Pointer),
        ("top_k", Int),
        ("shared", Pointer),
        ("logits", Pointer),
        ("experts", Int),
        ("gated", Int),
        ("accepted", Pointer),
        ("features", Pointer),
        ("visual", Pointer),
    ]


def float_bytes(*shape: int) -> int:
    return 4 * math.prod(shape)


def half_bytes(*shape: int) -> int:
    return 2 * math.prod(shape)
