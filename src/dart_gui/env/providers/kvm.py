"""Does KVM run guests at the speed of this processor? Asked of KVM itself, with a small guest.

``/dev/kvm`` says nothing of the kind: under nested or software virtualisation it may open, make
virtual machines, and interpret their kernels instruction by instruction, so that a stock guest takes
minutes to hours to boot, or fail at an instruction that the interpreter lacks. The guest here is what
a kernel is: 64-bit code of ring 0 with paging on, ``cmpxchg16b``, an SSE load, a loop, then ``hlt``.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

DEVICE = Path("/dev/kvm")
LIMIT_S = 5.0
NUM_LOOPS = 20_000_000
"""Under 0.1 s at the speed of a processor, minutes where each instruction is interpreted."""

_CREATE_VM, _RUN, _VCPU_MMAP_SIZE, _CREATE_VCPU = 0xAE01, 0xAE80, 0xAE04, 0xAE41
_SET_MEMORY, _GET_SREGS, _SET_SREGS = 0x4020AE46, 0x8138AE83, 0x4138AE84
_SET_REGS, _GET_CPUID, _SET_CPUID = 0x4090AE82, 0xC008AE05, 0x4008AE90
_EXITS = {5: "", 8: "a triple fault", 9: "no entry", 17: "an instruction that KVM cannot interpret"}
_MEMORY = 1 << 21
_PML4, _PDPT, _PD, _CODE, _DATA = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
_GUEST = bytes.fromhex(
    "f0480fc70e"  # lock cmpxchg16b [rsi]
    "0f2806"  # movaps xmm0, [rsi]
    "48ffc9"  # loop: dec rcx
    "75fb"  # jnz loop
    "f4"  # hlt
)


@dataclass(frozen=True, slots=True)
class Kvm:
    works: bool
    text: str  # what was seen


def probe(
    *,
    device: Path = DEVICE,
    limit_s: float = LIMIT_S,
    command: Sequence[str] = (sys.executable, "-m", "dart_gui.env.providers.kvm"),
    run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run,
) -> Kvm:
    """Run the guest in a process of its own, which is killed after ``limit_s``: a guest that makes no
    progress cannot be left in any other way."""
    if not os.access(device, os.R_OK | os.W_OK):
        what = "cannot be opened by this user" if device.exists() else "is not there"
        return Kvm(False, f"{device} {what}")
    try:
        done = run([*command], capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Kvm(False, f"a guest that takes 0.1 s on a processor did not end in {limit_s:g} s")
    try:
        answer = json.loads(done.stdout)
        return Kvm(bool(answer["works"]), str(answer["text"]))
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        return Kvm(False, f"the probe ended with {done.returncode}: {said[0]}")


def main() -> int:
    if platform.machine() != "x86_64":
        print(json.dumps({"works": False, "text": f"no probe for {platform.machine()}"}))
        return 0
    reason = run_guest()
    what = f"the guest of the probe stopped: exit reason {reason}"
    text = what + (f" ({_EXITS[reason]})" if _EXITS.get(reason) else "")
    works = reason == 5
    print(json.dumps({"works": works, "text": "a guest ran at full speed" if works else text}))
    return 0


def run_guest() -> int:
    """The exit reason of ``KVM_RUN`` (Linux, Documentation/virt/kvm/api.rst). May not return.

    Raises:
        OSError: KVM refuses a step.
    """
    kvm = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
    memory = mmap.mmap(-1, _MEMORY)
    _fill(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, _SET_MEMORY, struct.pack("=IIQQQ", 0, 0, 0, _MEMORY, address))
    cpu = fcntl.ioctl(machine, _CREATE_VCPU, 0)
    cpuid = bytearray(struct.pack("=II", 256, 0) + bytes(256 * 40))
    fcntl.ioctl(kvm, _GET_CPUID, cpuid)
    fcntl.ioctl(cpu, _SET_CPUID, cpuid)
    state = mmap.mmap(cpu, fcntl.ioctl(kvm, _VCPU_MMAP_SIZE, 0))
    _enter_long_mode(cpu)
    # rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags
    registers = [0, 0, NUM_LOOPS, 0, _DATA, 0, _DATA + 0x800, 0, *[0] * 8, _CODE, 2]
    fcntl.ioctl(cpu, _SET_REGS, struct.pack("=18Q", *registers))
    fcntl.ioctl(cpu, _RUN, 0)
    return int.from_bytes(state[8:12], sys.byteorder)


def _fill(memory: mmap.mmap) -> None:
    """Page tables that map the first 2 MB to themselves, and the code."""
    present, large = 0b11, 1 << 7
    for at, entry in ((_PML4, _PDPT | present), (_PDPT, _PD | present), (_PD, present | large)):
        memory[at : at + 8] = struct.pack("=Q", entry)
    memory[_CODE : _CODE + len(_GUEST)] = _GUEST


def _enter_long_mode(cpu: int) -> None:
    """By ``struct kvm_sregs``: 8 segments of 24 bytes, 2 tables of 16, cr0 cr2 cr3 cr4 cr8 efer."""
    registers = bytearray(312)
    fcntl.ioctl(cpu, _GET_SREGS, registers)
    code, data = 11, 3  # types: execute and read, accessed; read and write, accessed
    for index in range(6):  # cs ds es fs gs ss
        is_code = index == 0
        selector, kind = (8, code) if is_code else (16, data)
        # base limit selector | type present dpl db s l g avl unusable padding
        flags = (kind, 1, 0, int(not is_code), 1, int(is_code), 1, 0, 0, 0)
        struct.pack_into("=QIH10B", registers, 24 * index, 0, 0xFFFFFFFF, selector, *flags)
    protected, paging, numeric, coprocessor = 1, 1 << 31, 1 << 5, 1 << 1
    physical, fxsr, simd = 1 << 5, 1 << 9, 1 << 10
    struct.pack_into("=Q", registers, 224, protected | paging | numeric | coprocessor)
    struct.pack_into("=QQ", registers, 240, _PML4, physical | fxsr | simd)
    struct.pack_into("=Q", registers, 264, 1 << 8 | 1 << 10)  # efer: long mode enabled and active
    fcntl.ioctl(cpu, _SET_SREGS, registers)


if __name__ == "__main__":
    sys.exit(main())
